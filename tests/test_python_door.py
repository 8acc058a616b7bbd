"""`segtrain.experiment` in a notebook: compose, build, fit, use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.errors import CheckpointError, ConfigError, DataError
from segtrain.experiment import build, build_dataset, build_model, compose, from_checkpoint


def test_from_a_list_of_overrides_to_a_trained_model(fast: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = build(compose(fast), folder=tmp_path / "run")
    before = [p.detach().clone() for p in trainer.model.parameters()]
    best = trainer.fit()
    assert trainer.course.step == 3
    assert best["epoch"] == 1
    assert 0 <= best["miou"] <= 1
    assert any(not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    segmenter = from_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, segmenter.model.state_dict()[name])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_dataset_by_split(fast: list[str]) -> None:
    cfg = compose(fast)
    train, val = build_dataset(cfg, "train"), build_dataset(cfg, "val")
    assert (len(train), len(val)) == (8, 8)
    assert train.transform is not None
    assert val.transform is None
    image, target, _ = val[0]
    assert (image.shape, image.dtype, target.shape) == ((32, 32, 3), np.uint8, (32, 32))
    with pytest.raises(ConfigError, match="no split 'test'"):
        build_dataset(cfg, "test")
    with pytest.raises(DataError, match="not found"):
        build_dataset(compose(["data=voc", "data.root=/nowhere"]), "val")


def test_a_model_alone_needs_no_agreement_with_the_data() -> None:
    cfg = compose(["data=voc", "data.root=/nowhere", "model.num_classes=7", "model.base_channels=4"])
    assert build_model(cfg).eval()(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 7, 32, 32)
    with pytest.raises(ConfigError, match=r"model\.num_classes=7, but the data have 21 classes"):
        build(cfg)


def test_another_target_laid_over_changes_the_classes(checkpoint: Path) -> None:
    for target, classes in (("trimap", ["pet", "background", "border"]), ("foreground", ["background", "pet"])):
        cfg = compose(["data=pet", "data.target=trimap"])
        cfg.data.target = target
        assert list(cfg.data.classes) == classes
        assert cfg.model.num_classes == len(classes)
    with pytest.raises(CheckpointError, match="the weights do not fit the model"):
        from_checkpoint(checkpoint, choices={"data": "pet"}, over={"data": {"target": "foreground"}})


def test_a_checkpoint_is_all_that_prediction_needs(checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    segmenter = from_checkpoint(str(checkpoint))
    assert segmenter.classes == ["background", "disc", "square", "triangle", "ring"]
    assert len(segmenter.palette) == 5
    assert segmenter.normalize["mean"] == [0.485, 0.456, 0.406]
    assert not segmenter.model.training
    image = np.random.default_rng(0).integers(0, 256, (41, 57, 3), dtype=np.uint8)
    prediction = segmenter.predict(image)
    assert (prediction.shape, prediction.dtype) == ((41, 57), np.uint8)
    assert prediction.max() < 5
    assert np.array_equal(prediction, segmenter.predict(image))
    assert np.array_equal(prediction, segmenter.predict(image.astype(np.float32)))


def test_the_precision_is_the_configs_whoever_calls(checkpoint: Path) -> None:
    segmenter = from_checkpoint(checkpoint)
    seen: list[torch.dtype] = []
    segmenter.model.register_forward_hook(lambda module, inputs, output: seen.append(output["out"].dtype))
    image = np.zeros((20, 30, 3), np.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        segmenter.predict(image)
    segmenter.amp = torch.bfloat16
    segmenter.predict(image)
    assert seen == [torch.float32, torch.bfloat16]


def test_views_and_read_only_images_are_taken_without_a_warning(checkpoint: Path) -> None:
    segmenter = from_checkpoint(checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    frozen = np.asarray(Image.fromarray(image))
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(segmenter.predict(frozen), segmenter.predict(image))
        assert np.array_equal(segmenter.predict(image[:, ::-1][:, ::-1]), segmenter.predict(image))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3))],
    ids=["grey", "RGBA", "channels first", "float64"],
)
def test_images_it_would_misunderstand(checkpoint: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(H, W, 3\)"):
        from_checkpoint(checkpoint).predict(image)


def test_values_and_groups_are_laid_over(checkpoint: Path) -> None:
    over = {"inference": {"window_size": 16, "window_stride": 8}, "trainer": {"device": "cpu"}}
    segmenter = from_checkpoint(checkpoint, over=over, choices={"inference": "slide"})
    assert segmenter.task.inference.window == (16, 16)
    with pytest.raises(ConfigError, match=r"inference\.window_sise"):
        from_checkpoint(checkpoint, over={"inference": {"window_sise": 16}}, choices={"inference": "slide"})


def test_averaged_weights_are_the_ones_used(fast: list[str], tmp_path: Path) -> None:
    trainer = build(compose([*fast, "trainer.ema=0.9"]), folder=tmp_path)
    trainer.fit()
    averaged = trainer.ema.evaluated(trainer.model).state_dict()
    used = from_checkpoint(tmp_path / "checkpoints" / "best.pt").model.state_dict()
    assert all(torch.equal(averaged[name], used[name]) for name in used)
    assert any(not torch.equal(trainer.model.state_dict()[name], used[name]) for name in used)


def test_a_float_image_that_was_scaled_is_refused(checkpoint: Path) -> None:
    segmenter = from_checkpoint(checkpoint)
    image = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"values up to (0\.99\d*|1\.0), expected \[0, 255\]: multiply it by 255"):
        segmenter.predict(image)
    assert segmenter.predict(image * 255).shape == (20, 30)
    # A black picture is the same in both scales, and so is one of bytes.
    black = np.zeros((20, 30, 3), np.float32)
    assert np.array_equal(segmenter.predict(black), segmenter.predict(black.astype(np.uint8)))
    assert segmenter.predict(np.ones((20, 30, 3), np.uint8)).shape == (20, 30)
