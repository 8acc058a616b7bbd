"""`results.jsonl`: one line for each image that is done, and what a later call need not do again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.atomic import remove_leftovers, write_atomically
from segtrain.errors import ConfigError
from segtrain.prediction.files import IN_AREAS, KINDS, result_files
from segtrain.prediction.inputs import is_video
from segtrain.tracking import plain

NAME = "results.jsonl"


@dataclass(frozen=True)
class Stamp:
    """What a file was when it was read: its length in bytes and its time of modification in nanoseconds."""

    bytes: int
    modified: int

    @classmethod
    def of(cls, file: Path) -> Stamp | None:
        """None where there is no such file."""
        try:
            found = file.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


class Journal:
    """The lines of one output folder.

    A line is written after its files; its image is done as long as the photo is the same, the files have the lengths
    that were written, and weights and settings are those of this call.

    Args:
        output: the folder of the results.
        made_by: digest of weights and settings.
    """

    def __init__(self, output: Path, made_by: str) -> None:
        self.output = output
        self.path = output / NAME
        self.made_by = made_by
        self.lines = {line["name"]: line for line in lines_of(self.path) or []}

    def done(self, name: str, file: Path) -> bool:
        """Whether the results of `file` under this name need not be made again."""
        line = self.lines.get(name, {})
        return (
            line.get("made_by") == self.made_by
            and line.get("file") == str(file)
            and line.get("source") == _as_dict(Stamp.of(file))
            and self._whole(line)
        )

    def current(self) -> list[dict[str, Any]]:
        """The lines of these weights and settings whose files are all there, whichever call wrote them."""
        return [line for line in self.lines.values() if line["made_by"] == self.made_by and self._whole(line)]

    def _whole(self, line: Mapping[str, Any]) -> bool:
        return all(length(self.output / path) == expected for path, expected in line.get("bytes", {}).items())

    def start_collection(self, name: str, again: bool) -> None:
        """Takes away what an earlier call collected, where images are done `again`: it no longer tells of all.

        Raises:
            ConfigError: a file of that name that predict did not write.
        """
        path = self.output / name
        if path.exists() and not self.path.exists():
            raise ConfigError(
                "a file that predict did not write would be overwritten",
                where=path,
                expected="a folder without it, or with the results of an earlier predict",
                fix="another output=DIR",
            )
        if again:
            path.unlink(missing_ok=True)

    def refuse_namesakes(self, inputs: Mapping[str, Path]) -> None:
        """Stops where results of one image would replace those of another that has the same name in another folder.

        Raises:
            ConfigError: such images.
        """
        pairs = [(Path(self.lines[name]["file"]), file) for name, file in inputs.items() if name in self.lines]
        # A photo that is no longer where it was may have been moved to where this call finds it.
        clashes = [(old, new) for old, new in pairs if old.exists() and new.exists() and not old.samefile(new)]
        if clashes:
            raise ConfigError(
                f"{len(clashes)} results of other images of the same names would be replaced",
                where="\n".join(f"{old} -> {new}" for old, new in clashes[:10]),
                expected="one output folder for each folder of images",
                fix="another output=DIR, or overwrite=true",
            )

    def forget(self, names: Iterable[str]) -> None:
        """Drops lines whose files are about to be replaced, and the torn last line of a killed call."""
        for name in names:
            self.lines.pop(name, None)
        if self.path.exists():
            write_atomically(self.path, "".join(_text(line) for line in self.lines.values()).encode())

    def add(
        self, name: str, file: Path, source: Stamp | None, written: Iterable[Path], found: Mapping[str, Any]
    ) -> None:
        """One line more; `written` are the files and folders of its results."""
        sizes = {path.relative_to(self.output).as_posix(): length(path) for path in written}
        head = {"name": name, "file": str(file), **found}
        line = {**head, "made_by": self.made_by, "source": _as_dict(source), "bytes": sizes}
        self.lines[name] = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as journal:
            journal.write(_text(line).encode())


def length(path: Path) -> int | None:
    """Bytes of a file, or of all files of a folder; None where there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if not file.name.startswith("."))
    return path.stat().st_size if path.is_file() else None


def sweep(output: Path, names: Iterable[str]) -> None:
    """Deletes what a killed call left half-written beside the results of these names."""
    folders = {path.parent for name in names for path in result_files(output, name, KINDS).values()}
    folders |= {output / kind / name for name in names for kind in KINDS}
    for folder in folders:
        remove_leftovers(folder)
        for video in folder.glob(".*.tmp.mp4"):
            video.unlink(missing_ok=True)


def refuse_overwriting(inputs: Mapping[str, Path], output: Path | None) -> None:
    """Stops before anything is written where a result would replace a file that predict did not write.

    Raises:
        ConfigError: such files; the usual ones are a dataset's own masks.
    """
    if output is None:  # a new folder
        return
    taken = {file.resolve() for file in inputs.values()}
    foreign = [output / NAME] if (output / NAME).exists() and lines_of(output / NAME) is None else []
    for name, file in inputs.items():
        places = list(result_files(output, name, KINDS).values())
        if is_video(file):  # folders of frames, and an overlay that is a video itself
            places += [*(output / kind / name for kind in KINDS), output / "overlays" / f"{name}.mp4"]
        earlier = _is_ours(output / "areas" / f"{name}.json")
        foreign += [path for path in places if path.exists() and (not earlier or path.resolve() in taken)]
    if foreign:
        raise ConfigError(
            f"{len(foreign)} files that predict did not write would be overwritten",
            where="\n".join(str(path) for path in foreign[:10])
            + (f"\nand {len(foreign) - 10} more" if len(foreign) > 10 else ""),
            expected="a folder without them, or with the results of an earlier predict",
            fix="another output=DIR (without it: hydra.run.dir=DIR, or leave both out for a new folder)",
        )


def _is_ours(areas: Path) -> bool:
    """Whether an earlier predict wrote this file, and with it all others of the same name."""
    try:
        content = json.loads(areas.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or no JSON: whatever it is, it is not ours
        return False
    return isinstance(content, dict) and {"image", "size", "classes"} == set(content) - IN_AREAS


def lines_of(path: Path) -> list[dict[str, Any]] | None:
    """The lines of a journal, without a last one that was cut off; None for a file that is no journal."""
    if not path.is_file():
        return []
    found = []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for text in whole.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return None
        if not _is_line(line):
            return None
        found.append(line)
    return found


def _is_line(line: Any) -> bool:
    """Whether a line has what is read from it, in the form in which it was written."""
    kinds = {"name": str, "file": str, "made_by": str, "bytes": dict, "areas": dict}
    return isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in kinds.items())


def _as_dict(stamp: Stamp | None) -> dict[str, int] | None:
    return None if stamp is None else {"bytes": stamp.bytes, "modified": stamp.modified}


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(plain(dict(line))) + "\n"
