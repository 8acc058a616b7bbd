"""A healthy model learns four images by heart."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.experiment import build, compose

SLOW = pytest.mark.slow
SMALL = [
    "debug=overfit",
    "data.crop_size=${data.size}",
    "data.num_workers=0",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.device=cpu",
]


@pytest.mark.parametrize(
    "options",
    [
        ["model.base_channels=16", "model.depth=3", "data.size=48", "optimizer.lr=0.005", "trainer.epochs=45"],
        pytest.param(
            ["model=deeplabv3plus", "model.backbone=resnet18", "data.size=64", "trainer.epochs=90"], marks=SLOW
        ),
    ],
)
def test_four_images_are_learned_by_heart(tmp_path: Path, options: list[str]) -> None:
    trainer = build(compose([*SMALL, *options]), folder=tmp_path)
    assert trainer.val_loader.dataset.split == "train"
    best = trainer.fit()
    assert best["miou"] > 0.95
    assert best["classes_counted"] >= 4
