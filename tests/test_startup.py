"""What a run imports, and that importing less changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain.startup import lighten, prepare_optimizers

RUN = """
import sys
from segtrain.__main__ import run
code = run(sys.argv[1:])
print("IMPORTED", *sorted({name for name in sys.modules if name.count(".") < 2}))
raise SystemExit(code)
"""


def imported(program: Any, cwd: Path, *argv: str) -> set[str]:
    done = program(*argv, cwd=cwd, python=("-c", RUN))
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("IMPORTED")]
    return set(line.split())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_run_imports_neither_the_compiler_nor_torchvision(
    program: Any, tmp_path: Path, fast: list[str], optimizer: str
) -> None:
    found = imported(program, tmp_path, *fast, f"optimizer={optimizer}", "trainer.max_steps=1")
    assert "torch.optim" in found
    assert not found & {"torch._dynamo", "torch._inductor", "torchvision", "sympy", "tensorboard", "torch.onnx"}


@pytest.mark.parametrize("argv", [("--help",), ("--cfg", "job"), ("--version",)])
def test_what_runs_nothing_imports_nothing_heavy(program: Any, tmp_path: Path, argv: tuple[str, ...]) -> None:
    found = imported(program, tmp_path, *argv)
    assert not found & {"torch", "cv2", "albumentations", "numpy", "PIL", "tensorboard"}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_a_lightened_optimizer_steps_as_before(make: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = torch.randn(5, 3)
    ours, theirs = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    prepare_optimizers()
    light, plain = make([ours], lr=0.1, **settings), make([theirs], lr=0.1, **settings)
    lighten(light)
    schedule = torch.optim.lr_scheduler.LambdaLR(light, lambda step: 1.0)
    for _ in range(3):
        for parameter, optimizer in ((ours, light), (theirs, plain)):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
        schedule.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, weights)
    restored = make([ours], lr=0.1, **settings)
    restored.load_state_dict(copy.deepcopy(light.state_dict()))


def test_a_step_of_the_users_own_is_left_alone() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise LookupError("mine")

    optimizer = Own([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    lighten(optimizer)
    with pytest.raises(LookupError, match="mine"):
        optimizer.step()
