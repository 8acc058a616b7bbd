"""The losses' references compute the same losses, and a loss that does not is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segtrain.benchmark import losses
from segtrain.benchmark.bench import Bench
from segtrain.benchmark.losses import OURS, REFERENCES, Work, forward_backward
from segtrain.benchmark.memory import peaks
from segtrain.composition import compose
from segtrain.losses.region import Dice


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(compose(["trainer.device=cpu"]), resolve=False)
    return Bench(tree=tree, repeats=2, seconds=0.01, profiles=(), say=lambda text: None, folder=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(OURS))
def test_reference_and_loss_agree_in_value_and_gradient(name: str) -> None:
    logits, target = Work(batch=2, coarse=6, full=33).make(torch.device("cpu"))
    assert (target == 255).any()
    expected = forward_backward(REFERENCES[name][0], logits, target)
    slopes = logits.grad
    found = forward_backward(OURS[name], logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad, slopes, rtol=1e-3, atol=1e-6)


def test_ohem_references_agree_where_the_threshold_decides() -> None:
    _, target = Work(batch=1, coarse=64, full=384).make(torch.device("cpu"))  # more pixels than are kept at least
    with torch.no_grad():
        sharp = 20 * torch.nn.functional.one_hot(target.clamp(max=20), 21).permute(0, 3, 1, 2).float()
        noisy = sharp + torch.randn_like(sharp)
        expected = REFERENCES["ohem"][0](noisy, target)
        torch.testing.assert_close(OURS["ohem"](noisy, target), expected)


def test_the_table_is_complete(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # No process per row here: another test has them.
    monkeypatch.setattr(losses, "peaks", lambda jobs, device: dict.fromkeys(jobs, 1.5))
    (table,) = losses.measure(bench, Work(batch=1, coarse=4, full=32))
    assert [row.key for row in table.rows] == [f"{kind}_{name}" for name in OURS for kind in ("naive", "ours")]
    for row in table.rows:
        assert row.extra["peak MiB"] == 1.5
        assert row.ratio > 0
        if row.key.startswith("ours"):
            assert row.extra["difference"] <= 1e-4
    assert table.row("naive_ce").extra["x CE"] == 1


def test_a_wrong_loss_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OURS, "dice", Dice(smooth=500.0))
    with pytest.raises(RuntimeError, match=r"dice is .* not the same computation"):
        losses.measure(bench, Work(batch=1, coarse=4, full=32))


def test_peak_memory_tells_one_hot_from_gathered() -> None:
    work = Work(batch=1, coarse=16, full=512)
    jobs = {key: (losses.prepare, (key, work, "cpu")) for key in ("naive_dice", "ours_dice", "ours_ce")}
    found = peaks(jobs, torch.device("cpu"))  # type: ignore[arg-type]
    assert 2 * work.logits_mib < found["ours_ce"] < 12 * work.logits_mib
    assert found["naive_dice"] > 1.3 * found["ours_dice"]
