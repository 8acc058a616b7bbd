"""The gradients of a step in themselves: what is added, what is clipped, what is told of numbers that are none."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.gradients import Gradients


class Mean:
    """A task whose batches are tensors: the loss is the mean of the network's outputs over all of a step's rows."""

    def __init__(self) -> None:
        self.asked = 0

    def counts(self, batch: Tensor) -> Tensor:
        self.asked += 1
        return torch.tensor([float(len(batch))])

    def losses(self, model: nn.Module, batch: Tensor, counts: Tensor | None) -> dict[str, Tensor]:
        count = torch.tensor(float(len(batch))) if counts is None else counts[0]
        loss = model(batch).square().sum() / count
        return {"half": loss / 2, "loss": loss}


def gradients(clip: float | None = None, scaler: bool = False) -> tuple[Gradients, nn.Linear, Mean]:
    torch.manual_seed(0)
    net, task = nn.Linear(3, 2), Mean()
    made: Any = Gradients(
        network=net,
        task=task,  # type: ignore[arg-type]
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=scaler, init_scale=8.0),
        precision=nullcontext,
        grad_clip=clip,
    )
    return made, net, task


def grads(net: nn.Linear) -> list[Tensor]:
    assert net.weight.grad is not None
    assert net.bias.grad is not None
    return [net.weight.grad.clone(), net.bias.grad.clone()]


def faulty(made: Gradients) -> bool:
    """What is told without a scaler."""
    fault = made.finish()
    assert fault is not None
    return bool(fault)


ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 2, 2]])
def test_a_steps_batches_add_up_to_one_batch_whatever_their_sizes(sizes: list[int]) -> None:
    whole, net, _ = gradients()
    expected = whole.add([ROWS])
    cut, other, task = gradients()
    found = cut.add(list(ROWS.split(sizes)))
    assert found.keys() == expected.keys() == {"half", "loss"}
    for name, value in expected.items():
        assert not found[name].requires_grad
        assert torch.allclose(found[name], value)
    for mine, theirs in zip(grads(other), grads(net), strict=True):
        assert torch.allclose(mine, theirs)
    assert task.asked == (0 if len(sizes) == 1 else len(sizes))  # one batch alone is counted with its loss


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_one_value_that_is_no_number_is_told(clip: float | None, value: float, where: str) -> None:
    made, net, _ = gradients(clip)
    made.add([ROWS])
    assert not faulty(made)
    made.forget()
    made.add([ROWS])
    gradient = getattr(net, where).grad
    gradient[(-1,) * gradient.ndim] = value
    assert faulty(made)


def test_looking_changes_no_bit_of_a_gradient() -> None:
    made, net, _ = gradients()
    made.add([ROWS])
    assert net.weight.grad is not None
    net.weight.grad[0, 0] = 1e-42  # denormal
    net.weight.grad[0, 1] = -0.0
    net.weight.grad[0, 2] = torch.finfo(torch.float32).max
    before = grads(net)
    assert not faulty(made)
    for mine, theirs in zip(grads(net), before, strict=True):
        assert torch.equal(mine.view(torch.int32), theirs.view(torch.int32))


def test_a_parameter_without_a_gradient_is_no_fault() -> None:
    made, net, _ = gradients()
    made.add([ROWS])
    net.bias.grad = None
    assert not faulty(made)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_under_a_scaler_gradients_are_unscaled_before_they_are_clipped_and_it_looks_itself(clip: float | None) -> None:
    plain, net, _ = gradients(clip)
    plain.add([ROWS])
    plain.finish()
    scaled, other, _ = gradients(clip, scaler=True)
    scaled.add([ROWS])
    assert scaled.finish() is None
    for mine, theirs in zip(grads(other), grads(net), strict=True):
        assert torch.allclose(mine, theirs)
    if clip is not None:
        norm = torch.stack([gradient.norm() for gradient in grads(other)]).norm()
        assert norm == pytest.approx(clip, rel=1e-3)
