"""Signals are noted while a run trains, and the handlers from before come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segtrain import stopping
from segtrain.stopping import SIGNALS, StopSignal

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_the_handlers_from_before_come_back(how: str) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopSignal()
    try:
        with stop:
            assert [signal.getsignal(number) for number in SIGNALS] != before
            os.kill(os.getpid(), signal.SIGTERM)
            if how == "fails":
                raise RuntimeError
    except RuntimeError:
        assert how == "fails"
    assert stop.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_echo_is_not_a_second_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 0.9
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGINT
        clock[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


FORKED = """
import os, signal, sys, time
from segtrain.stopping import StopSignal
with StopSignal() as stop:
    child = os.fork()
    for _ in range(2):
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.1)
    if child == 0:
        os._exit(0 if stop.received is None else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_worker_leaves_stopping_to_the_main_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
