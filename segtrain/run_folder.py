"""Where a run writes: one folder, chosen once, with what is needed to repeat it."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from segtrain import distributed
from segtrain.atomic import remove_leftovers, write_atomically
from segtrain.composition import run_id
from segtrain.errors import ConfigError, SegtrainError
from segtrain.lock import FolderLock


class RunFolder:
    """The folder of one run.

    Args:
        command: train, evaluate or predict.
        path: given by the user (`hydra.run.dir=DIR`) or by a sweep; None: chosen by `choose`.
        overrides: the command line's, for `overrides.txt` and for saying how to resume.
        flags: the command line's that another command needs too, as --config-dir=DIR.
    """

    def __init__(self, command: str, path: Path | None, overrides: list[str], flags: Iterable[str] = ()) -> None:
        self.command = command
        self.path = path
        self.given = path is not None
        self.overrides = overrides
        self.flags = list(flags)

    def refuse_other_run(self, sign: str, fix: str) -> None:
        """Stops before this run's files would replace or mix with those of the run that left `sign` in the folder.

        Raises:
            ConfigError: the given folder holds `sign`, or what another command wrote.
        """
        if self.path is None:
            return
        writer = _writer(self.path)
        signed = (self.path / sign).exists()
        if signed or writer not in (None, self.command):
            sign = sign if signed else f"the files of `{writer}`"
            taken, self.path = self.path, None  # so that `keep_error` leaves nothing there either
            raise ConfigError(
                "the run folder holds another run",
                where=taken,
                expected=f"a folder without {sign}, so that the two runs do not mix",
                fix=fix,
            )

    def choose(self, name: str) -> Path:
        """The folder: the given one, else `outputs/<command>/<name>/<date>_<time>-<4 hex>`."""
        if self.path is None:
            self.path = Path("outputs") / self.command / name / run_id()
        return self.path

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keeps every other run out of the chosen folder while entered; of several ranks the first does so for all.

        Raises:
            ConfigError: another run is in it; every rank raises it, so that none goes on without the first.
        """
        assert self.path is not None
        refusal: SegtrainError | None = None
        with contextlib.ExitStack() as until_the_end:
            if distributed.is_main():
                command = self.command_line(self.command, *self.overrides)
                try:
                    until_the_end.enter_context(FolderLock(self.path, command=command, say=say))
                except SegtrainError as error:
                    self.path = None  # so that `keep_error` leaves nothing in the other run's folder
                    refusal = error
            refusal = distributed.from_main(refusal)
            if refusal is not None:
                refusal.of_all_ranks = True
                raise refusal
            yield

    def describe(self, cfg: DictConfig, versions: dict[str, str], device: str) -> None:
        """Writes `config.yaml`, `overrides.txt` and `env.json`, and sweeps away what a killed run left half-written."""
        assert self.path is not None
        for place in (self.path, self.path / "checkpoints"):
            remove_leftovers(place)
        # Unresolved, so that a value taken from the environment stays a reference and is not written down.
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(cfg).encode())
        lines = "".join(f"{override}\n" for override in self.overrides)
        write_atomically(self.path / "overrides.txt", lines.encode())
        environment: dict[str, Any] = {
            "command": self.command,
            "versions": versions,
            "device": device,
            "platform": platform.platform(),
            "python": sys.executable,
        }
        write_atomically(self.path / "env.json", (json.dumps(environment, indent=2) + "\n").encode())
        (self.path / "error.txt").unlink(missing_ok=True)  # of the interruption that this run goes on from

    def keep_error(self, text: str) -> None:
        """Leaves the error beside what the run wrote, if it came that far; a sweep's console scrolls away."""
        if self.path is not None and self.path.is_dir() and distributed.is_main():
            try:
                (self.path / "error.txt").write_text(text + "\n", encoding="utf-8")
            except OSError as error:  # a full disk may be the very thing to report, and the console has it
                sys.stderr.write(f"note: {self.path / 'error.txt'} cannot be written: {error.strerror}\n")

    def resume_line(self) -> str:
        """The command that continues this run."""
        kept = [o for o in self.overrides if not o.lstrip("+").startswith(("trainer.resume=", "hydra.run.dir="))]
        return self.command_line(*kept, "trainer.resume=auto", override("hydra.run.dir", str(self.path)))

    def command_line(self, *words: str) -> str:
        """A line to paste into a shell: the program, this run's flags, and the words (a command, overrides)."""
        # The command stands first: a flag would take it for its value.
        named = [word for word in words[:1] if "=" not in word and not word.startswith("~")]
        line = ["python", "-m", "segtrain", *named, *self.flags, *words[len(named) :]]
        return " ".join(shlex.quote(word) for word in line)


def _writer(folder: Path) -> str | None:
    """The command whose run a folder holds; None: none, or one that did not say so."""
    try:
        content = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not ours
        return None
    return content.get("command") if isinstance(content, dict) else None


def override(key: str, value: str) -> str:
    """`key=value` such that Hydra reads the text `value` back, quoted where it would read something else."""
    plain = f"{key}={value}"
    return plain if _reads_as(plain, value) else f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _reads_as(plain: str, value: str) -> bool:
    try:
        read = OverridesParser.create().parse_override(plain)
    except HydraException:
        return False  # as it stands it is no override at all
    return not read.is_sweep_override() and bool(read.value() == value)
