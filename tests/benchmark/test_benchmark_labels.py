"""The evaluation's topic: labels must be the usual ones, pixel for pixel, before anything is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from segtrain.benchmark import labels
from segtrain.benchmark.bench import Bench
from segtrain.benchmark.labels import NAMES, Work
from segtrain.composition import compose

WORK = Work("small", 2, 5, (6, 9), (41, 64))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    tree = OmegaConf.to_container(compose(["trainer.device=cpu"]), resolve=False)
    return Bench(tree=tree, repeats=2, seconds=0.01, profiles=(), say=lambda text: None, folder=tmp_path)  # type: ignore[arg-type]


def test_the_usual_matrix_counts_labelled_pixels() -> None:
    target = torch.tensor([[[0, 1, 255, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 0, 1, 1]]])
    assert labels.usual_matrix(prediction, target, 2).tolist() == [[1, 0], [1, 1]]


def test_the_table_is_complete(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # No process per row here: another test has them.
    monkeypatch.setattr(labels, "peaks", lambda jobs, device: dict.fromkeys(jobs, 1.5))
    (table,) = labels.measure(bench, (WORK,))
    assert [row.key for row in table.rows] == list(NAMES)
    assert table.row("usual").ratio == table.row("usual_labels").ratio == 1
    assert table.row("ours").goal == 4
    assert table.row("ours").extra["peak MiB"] == 1.5


def test_one_wrong_pixel_stops_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = labels.upsampled_labels

    def wrong(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        found = right(logits, size, align_corners)
        found[0, 3, 5] = (found[0, 3, 5] + 1) % logits.shape[1]
        return found

    monkeypatch.setattr(labels, "upsampled_labels", wrong)
    with pytest.raises(RuntimeError, match=f"1 of {2 * 41 * 64} labels differ"):
        labels.measure(bench, (WORK,))


def test_a_wrong_count_stops_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "our_matrix", lambda *_: torch.zeros(5, 5, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="confusion matrix differs"):
        labels.measure(bench, (WORK,))
