"""A file is written whole or not at all, whatever its name. For kills and full disks see `test_checkpoint*.py`."""

from __future__ import annotations

from pathlib import Path

from segtrain.atomic import _beside, remove_leftovers, write_atomically


def test_a_file_of_the_longest_name_is_written_whole(tmp_path: Path) -> None:
    """The unfinished file has a longer name than the file; two of one beginning must not be one."""
    names = ["x" * 251 + end for end in (".pt", ".jp")]
    for name in names:
        write_atomically(tmp_path / name, name.encode(), read_back=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in names}
    assert len({_beside(tmp_path / name) for name in names}) == 2
    _beside(tmp_path / names[0]).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_older_file_stays_under_the_name_it_is_given_and_goes_without_one(tmp_path: Path) -> None:
    path = tmp_path / "new.txt"
    write_atomically(path, b"1", keep_as="old.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["new.txt"], "there was none to keep"
    write_atomically(path, b"2", keep_as="old.txt")
    write_atomically(path, b"3")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"new.txt": "3", "old.txt": "1"}
