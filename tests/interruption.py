"""`predict` stopped by a signal, and what a second call makes of what the first has left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segtrain.prediction import flow


@contextmanager
def sigterm_in_each_batch() -> Iterator[None]:
    """SIGTERM reaches this process when a batch is about to be predicted."""
    real = flow.predict_batch

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flow, "predict_batch", interrupted)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """All that is written but for the journal, which has times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "results.jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stopped_and_gone_on(predict: Callable[..., Any], out: Path, *, images: int, collected: str) -> dict[str, bytes]:
    """Fails unless photos/ done in two calls, the first stopped after one image, leave what one call leaves.

    Args:
        images: how many there are.
        collected: the file of all results, which is not to be there between the two calls.

    Returns:
        What is written, by name.
    """
    one_at_a_time = ("input=photos", "data.batch_size=1")
    assert predict(*one_at_a_time).code == 0
    whole = contents(out)
    assert collected in whole
    with sigterm_in_each_batch():
        done = predict(*one_at_a_time, "overwrite=true")
    assert done.code == 143, done.err
    assert not (out / collected).exists(), "an older one would tell of other files than are there"
    done = predict(*one_at_a_time)
    assert (done.code, f"done   1 of {images}" in done.out) == (0, True)
    assert contents(out) == whole
    return whole
