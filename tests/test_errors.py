"""Errors keep their whole text wherever they are raised."""

from __future__ import annotations

import pickle

import pytest

from segtrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    NonFiniteError,
    ResourceError,
    SegtrainError,
    closest,
    listed,
)

CODES = {ConfigError: 2, DataError: 3, CheckpointError: 4, NonFiniteError: 5, ResourceError: 6}


@pytest.mark.parametrize("kind", CODES)
def test_an_error_crosses_processes_whole(kind: type[SegtrainError]) -> None:
    error = kind("found it", where="file", expected="this\nor that", fix="do so")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.code, copy.args) == (str(error), CODES[kind], ("found it",))


def test_an_interruption_crosses_processes_with_its_code() -> None:
    copy = pickle.loads(pickle.dumps(Interrupted("stopped", signal=15, fix="go on")))
    assert (type(copy), copy.code, copy.fix, copy.found) == (Interrupted, 143, "go on", "stopped")


def test_the_block_has_only_lines_that_say_something() -> None:
    assert str(DataError("bad")) == "error[data] bad"
    lines = str(ConfigError("bad", where="here", fix="one\ntwo")).splitlines()
    assert lines == ["error[config] bad", "  where     here", "  fix       one", " " * 12 + "two"]


def test_the_nearest_name_is_found_by_its_last_part_too() -> None:
    known = ["trainer.epochs", "trainer.seed", "data.root", "optimizer.lr"]
    assert closest("epoch", known) == "trainer.epochs"
    assert closest("trainer.epocs", known) == "trainer.epochs"
    assert closest("data.rot", known) == "data.root"
    assert closest("zzz", known) is None


def test_long_lists_are_cut_with_their_count() -> None:
    assert listed(range(12), limit=3) == "0, 1, 2 and 9 more"
    assert listed("abc", limit=3) == "a, b, c"
