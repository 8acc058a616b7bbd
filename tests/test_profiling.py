"""`trainer.profile=true` leaves a trace with the steps' operations in it, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from segtrain.profiling import RECORDED, SKIPPED, WARM_UP, Profiler


def test_a_run_leaves_a_trace_of_its_steps(door: Any, fast: list[str], tmp_path: Path) -> None:
    steps = SKIPPED + WARM_UP + RECORDED
    words = [*fast, "data.limit=32", f"trainer.max_steps={steps + 3}", "trainer.epochs=2"]
    plain = door(*words, "hydra.run.dir=plain")
    profiled = door(*words, "trainer.profile=true", "hydra.run.dir=profiled")
    assert (plain.code, profiled.code) == (0, 0), profiled.err
    assert f"profile: {tmp_path / 'profiled/profile/trace.json'}" in profiled.out
    trace = json.loads((tmp_path / "profiled/profile/trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) >= RECORDED
    assert any("conv" in name for name in names)
    scores = [json.loads((tmp_path / run / "metrics.json").read_text())["miou"] for run in ("plain", "profiled")]
    assert scores[0] == scores[1]


def test_a_run_too_short_to_record_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with Profiler(tmp_path / "profile" / "trace.json", torch.device("cpu"), said.append) as profiler:
        profiler.step()
    assert "the run had 1 steps" in said[-1]
    assert "nothing is recorded" in said[-1]
