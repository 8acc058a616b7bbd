"""The recipes on their own data: real steps on real photographs, and a loss that falls."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segtrain.composition import groups
from segtrain.experiment import build, compose
from segtrain.tracking import Tracker

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
SIZE = {"unet_cells": 220, "segnet_camvid": [120, 160], "unet_pet": 96, "unet_portrait": 96}
"""Of crops, where the recipe's own would take a CPU minutes a step."""
RATE = {"fcn": 1e-3, "pspnet": 1e-3, "deeplabv2": 2.5e-5}


def cells(root: Path) -> Path:
    """Gray images of bright discs, some of which touch, with masks of 0 and 1."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(4):
            mask = np.zeros((256, 256), np.uint8)
            for x, y in rng.integers(20, 236, (14, 2)):
                cv2.circle(mask, (int(x), int(y)), int(rng.integers(10, 18)), 1, -1)
            image = (60 + 120 * mask + rng.normal(0, 12, mask.shape)).clip(0, 255).astype(np.uint8)
            for kind, array in (("images", image), ("masks", mask)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{index}.png"), array)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("option", groups()["experiment"])
def test_a_recipe_learns_on_its_data(option: str, tmp_path: Path) -> None:
    data = str(compose([f"experiment={option}"]).data._target_).rsplit(".", 1)[-1]
    words = [f"experiment={option}", "data.limit=2", "data.scan=2", "data.num_workers=0", "data.batch_size=2"]
    if data == "Cityscapes":
        pytest.skip("its license forbids keeping a copy")
    if data == "Folder":
        words.append(f"data.root={cells(tmp_path / 'cells')}")
    elif data.startswith("Shapes"):  # generated
        pass
    elif not DATA.is_dir():
        pytest.skip("no real data beside this clone")
    elif data == "Portrait":
        words += [f"data.root={DATA / 'portrait360'}", "data.label_map={0: 1, 1: 0}"]
    else:
        words.append(f"data.root={DATA}")
    if data == "VocAug":  # its list is longer than what lies there
        words.append("data=voc")
    # From random weights, as nothing can be fetched: statistics must be learned, and rates made for trained weights
    # are too small (FCN) or, ten times as high for the last layers and for batches of 10 or 16, too high.
    crop = str(SIZE.get(option, 129)).replace(" ", "")
    words += ["model.weights=none", "model.freeze_bn=false", f"data.crop_size={crop}"]
    if option == "maskrcnn_pennfudan":  # a ResNet-50 on images of 800 pixels takes minutes a step
        words += ["model.norm=batch", "model.trainable_layers=5", "model.backbone=resnet18", "model.min_size=192"]
        words += ["optimizer.lr=1e-3"]
    words += ["model.padding=modern"] if option.startswith("fcn") else []
    words += [f"optimizer.lr={RATE[name]}" for name in RATE if option.startswith(name)]
    trainer = build(
        compose([*words, "trainer.device=cpu", "trainer.epochs=12", "trainer.max_steps=12"]),
        folder=tmp_path,
        tracker=Tracker(),
    )
    losses = []
    trainer.start_training()
    for epoch in range(12):
        for batches in trainer.train_loader.steps(epoch):
            trainer.train_step(batches)
            losses.append(trainer.sums.take("window")["loss"])
            trainer.course.step += 1
    assert np.isfinite(losses).all(), losses
    assert np.mean(losses[-3:]) < np.mean(losses[:3]), losses
