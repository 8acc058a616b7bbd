"""Names in lists of files: those of files below a folder pass, and nothing else, on any system."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.data.inside import leads_out, refuse_outside
from segtrain.errors import DataError

OUTSIDE = [
    "../a.png",
    "a/../../b.png",
    "/etc/passwd",
    "\\a.png",
    "a\\..\\..\\b.png",
    "C:a.png",
    "c:\\a.png",
    "C:/a.png",
]
OUTSIDE += ["", ".", "a/", "a/.", "..", "a\\", "a\0.png", "//host/a.png", "\\\\host\\a.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_or_to_no_file_is_refused(name: str) -> None:
    assert leads_out(name)
    with pytest.raises(DataError, match="the list names a file outside its folder") as caught:
        refuse_outside(["a.png", name], Path("list.txt"))
    assert caught.value.where == "list.txt"


@pytest.mark.parametrize(
    "name", ["a", "a.png", "a/b.png", "a\\b.png", "..a.png", "a..b/...c", "12:30.png", ".a", "a b"]
)
def test_names_below_the_folder_pass(name: str) -> None:
    refuse_outside([name], Path("list.txt"))


def test_all_of_them_are_told_at_once() -> None:
    with pytest.raises(DataError, match=r"names 2 files outside its folder: '\.\./a', '/b'") as caught:
        refuse_outside(["../a", "c", "/b"], Path("x.json"), below="the folder of images", fix="take them out")
    assert (caught.value.expected, caught.value.fix) == ("names and paths below the folder of images", "take them out")
