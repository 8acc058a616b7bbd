"""The guard in itself: what it admits now, and what it finds later where looking is put off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segtrain.composition import compose
from segtrain.errors import ConfigError, NonFiniteError
from segtrain.finite import MAX_SCALER_SKIPS, MAX_SKIPPED, FiniteGuard, ScalerGuard
from segtrain.parts import refuse_batch_of_one
from segtrain.settings import Settings
from segtrain.types import Batch, Record

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(1.0), torch.tensor(math.nan)  # losses
NO, YES = torch.tensor(0.0), torch.tensor(1.0)  # whether a gradient is not finite


def guard(how: str = "stop", keep: int = 3) -> tuple[FiniteGuard, list[str]]:
    said: list[str] = []
    return FiniteGuard(CPU, on_nonfinite=how, keep=keep, say=said.append, lr=lambda: 0.25), said  # type: ignore[arg-type]


def batches(*names: str) -> list[Batch]:
    empty = torch.empty(len(names), 1, 1, 3)
    return [Batch(empty, empty[..., 0], torch.arange(len(names)), [Record(name) for name in names])]


@pytest.mark.parametrize(
    ("loss", "fault"), [(BAD, NO), (GOOD, YES), (torch.tensor(math.inf), NO), (GOOD, torch.tensor(True))]
)
def test_what_is_not_finite_stops_with_the_samples_named(loss: torch.Tensor, fault: torch.Tensor) -> None:
    watch, _ = guard()
    assert watch.admits(nn.Identity(), 1, batches("a"), GOOD, NO)
    with pytest.raises(NonFiniteError) as caught:
        watch.admits(nn.Identity(), 2, batches("b", "c"), loss, fault)
    assert "at step 2 (lr 0.25)" in caught.value.found
    assert caught.value.where == "b, c"


def test_an_infinite_gradient_under_a_scaler_is_the_scalers_affair() -> None:
    watch, _ = guard()
    assert watch.admits(nn.Identity(), 1, batches("a"), GOOD, None)
    with pytest.raises(NonFiniteError):
        watch.admits(nn.Identity(), 2, batches("a"), BAD, None)


def test_skipping_says_so_and_counts_in_a_row_only() -> None:
    watch, said = guard("skip")
    for step in range(1, MAX_SKIPPED + 1):
        assert not watch.admits(nn.Identity(), step, batches("a"), BAD, NO)
    assert watch.admits(nn.Identity(), 50, batches("a"), GOOD, NO)
    for step in range(51, 51 + MAX_SKIPPED):
        assert not watch.admits(nn.Identity(), step, batches("a"), GOOD, YES)
    with pytest.raises(NonFiniteError, match="at step 71"):
        watch.admits(nn.Identity(), 71, batches("a"), BAD, NO)
    assert len(said) == 2 * MAX_SKIPPED
    assert said[0] == "warning: step 1 skipped, its loss or gradient is not finite"


def test_deferred_looking_finds_the_first_bad_step_and_its_samples() -> None:
    watch, _ = guard(keep=3)
    watch.deferred = True
    watch.check()
    for step, loss, fault in [(1, GOOD, NO), (2, GOOD, YES), (3, BAD, YES)]:
        assert watch.admits(nn.Identity(), step, batches(f"sample {step}"), loss, fault)
    with pytest.raises(NonFiniteError, match="at step 2") as caught:
        watch.check()
    assert caught.value.where == "sample 2"


def test_a_skipped_step_leaves_no_trace_in_the_statistics() -> None:
    norm = nn.BatchNorm2d(2)
    watch, _ = guard("skip")
    watch.remember(norm)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm(torch.full((1, 2, 3, 3), math.nan))
    assert not watch.admits(norm, 1, batches("a"), BAD, NO)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    net = nn.Linear(2, 1)
    watch, _ = guard()
    adam = torch.optim.AdamW(net.parameters(), lr=0.0)
    net(torch.full((1, 2), 1e19)).sum().backward()
    watch.check_state(net, adam)
    adam.step()
    watch.check_state(net, adam)
    assert net.weight.grad is not None
    net.weight.grad.mul_(1e3)  # finite, and its square is not
    adam.step()
    with pytest.raises(NonFiniteError, match="1 of the weights, statistics or the optimizer's sums hold NaN") as found:
        watch.check_state(net, adam)
    assert found.value.where == "exp_avg_sq of weight"
    with torch.no_grad():
        net.bias.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="hold NaN or infinity") as found:
        watch.check_state(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert found.value.where == "bias"


# --- the scaler of fp16 ------------------------------------------------------------------------------------------


def overflowing(scaler: torch.amp.GradScaler, finite: bool) -> None:
    """One step of a real scaler with gradients that are finite or not."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    weight.grad = torch.full((1,), 1.0 if finite else math.inf)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def real_scaler(scale: float = 2.0**16, growth: int = 2000) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth)
    scaler.scale(torch.ones(1))  # makes its tensors
    return scaler


def test_left_out_updates_of_a_real_scaler_are_counted_between_two_readings() -> None:
    scaler = real_scaler()
    watch = ScalerGuard(scaler, lr=lambda: 0.1)
    for finite in (True, False, True, False, False):
        overflowing(scaler, finite)
    assert watch.check(5) == 3
    overflowing(scaler, True)
    assert watch.check(6) == 0
    assert watch.left_out == 3


def test_a_scale_that_fell_below_one_stops_the_run_and_names_it() -> None:
    scaler = real_scaler(scale=4.0)
    watch = ScalerGuard(scaler, lr=lambda: 0.25)
    overflowing(scaler, False)
    overflowing(scaler, False)
    assert watch.check(2) == 2
    overflowing(scaler, False)
    with pytest.raises(
        NonFiniteError, match=r"left out 3 updates in a row up to step 3 and its scale is 0\.5"
    ) as caught:
        watch.check(3)
    assert caught.value.code == 5
    assert "trainer.amp=bf16" in str(caught.value.fix)


def test_updates_left_out_in_a_row_are_limited_and_a_good_one_breaks_the_row() -> None:
    scaler = real_scaler(scale=2.0**100)
    watch = ScalerGuard(scaler, lr=lambda: 0.1)
    step = 0
    for _ in range(2):  # almost the limit, a good step, almost the limit again
        for _ in range(MAX_SCALER_SKIPS - 2):
            overflowing(scaler, False)
            step += 1
            watch.check(step)
        overflowing(scaler, True)
        step += 1
        watch.check(step)
    scaler = real_scaler(scale=2.0**100)
    watch = ScalerGuard(scaler, lr=lambda: 0.1)
    for step in range(1, MAX_SCALER_SKIPS + 1):  # read at every tenth step only
        overflowing(scaler, False)
        if step % 10 == 0 and step < MAX_SCALER_SKIPS:
            assert watch.check(step) == 10
    with pytest.raises(NonFiniteError, match=f"left out {MAX_SCALER_SKIPS} updates in a row"):
        watch.check(MAX_SCALER_SKIPS)


def test_a_restored_scaler_is_watched_from_where_it_stands() -> None:
    scaler = real_scaler()
    watch = ScalerGuard(scaler, lr=lambda: 0.1)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 4.0})
    watch.restart(100)
    assert watch.check(110) == 0
    overflowing(scaler, False)
    assert watch.check(111) == 1


class Counted:
    """A scaler that knows how often it was asked."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.asked = enabled, 0

    def is_enabled(self) -> bool:
        return self.enabled

    def get_scale(self) -> float:
        self.asked += 1
        return 65536.0


def test_the_scale_is_read_at_log_points_only_and_never_without_fp16() -> None:
    on, off = Counted(True), Counted(False)
    watches = [ScalerGuard(scaler, lr=lambda: 0.1) for scaler in (on, off)]
    for step in (10, 20, 30):
        assert [watch.check(step) for watch in watches] == [0, 0]
    assert (on.asked, off.asked) == (4, 0)


# --- what must be finite before any guard looks ------------------------------------------------------------------

LOSSES = sorted(
    path.stem
    for path in (Path(__file__).resolve().parents[1] / "configs/loss").glob("[!_]*.yaml")
    if path.stem != "maskrcnn"  # a detector's network computes its own
)


@pytest.mark.parametrize("option", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_configured_loss_is_finite_at_logits_of_ten_thousand_under_autocast(
    option: str, dtype: torch.dtype
) -> None:
    loss = Settings(compose([f"loss={option}"])).make("loss")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 16, 16, generator=generator).sign() * 1e4
    outputs = {"out": logits.to(dtype).requires_grad_()}
    target = torch.randint(0, 5, (2, 16, 16), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        for labels in (target, torch.full_like(target, 255)):
            found = loss(outputs, labels, loss.counts(labels))["loss"]
            assert found.dtype == torch.float32
            assert torch.isfinite(found)
            (gradient,) = torch.autograd.grad(found, outputs["out"])
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "model", ["deeplabv3", "deeplabv3plus", "pspnet", "lraspp", "deeplabv3_mobilenet", "unet_small"]
)
def test_a_batch_of_one_is_refused_at_build_time_where_the_first_step_would_fail(model: str) -> None:
    settings = Settings(compose([f"model={model}", "data.batch_size=1", "data.crop_size=64"]))
    network = settings.make("model").train()
    fails = ""
    try:
        network(torch.zeros(1, 3, 64, 64))
    except ValueError as error:
        fails = str(error)
    assert not fails or "more than 1 value per channel" in fails
    if fails:
        with pytest.raises(ConfigError, match=r"data\.batch_size=1") as caught:
            refuse_batch_of_one(settings, network)
        assert "model.freeze_bn=true" in str(caught.value.fix)
    assert fails or model in ("unet_small", "lraspp")
