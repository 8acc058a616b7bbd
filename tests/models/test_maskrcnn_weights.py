"""Weights into Mask R-CNN: torchvision's files of today and of before, other classes, a backbone alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import mask_rcnn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from segtrain.errors import CheckpointError, ConfigError
from segtrain.models.maskrcnn import MaskRCNN
from segtrain.models.maskrcnn_weights import TRAINED_WITHOUT_EPS, modern
from segtrain.models.pretrained import load_weights

COCO = mask_rcnn.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
CLASSES = COCO.meta["categories"]
ADJUSTED = "normalization scales adjusted: trained with eps 0, now 1e-05"
State = dict[str, Tensor]


def small(num_classes: int = 3, **options: Any) -> MaskRCNN:
    settings: dict[str, Any] = {"backbone": "resnet18", "min_size": 64, **options}
    return MaskRCNN(num_classes=num_classes, **settings)


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalizations as if they had learned; one channel each hardly varies, as in real files."""
    draw = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1, generator=draw)
            layer.running_var.uniform_(0.5, 2, generator=draw)
            layer.running_var[0] = 1e-14
            layer.weight.data[0] = 1e-7
    return model


def old_names(state: State) -> State:
    """The inverse of torchvision's renaming in 0.13."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("backbone.fpn.") or key.startswith("rpn.head.conv."):
            key = key.replace(".0.0.", ".") if key.startswith("rpn.") else key.replace(".0.weight", ".weight")
            key = key.replace(".0.bias", ".bias")
        if key.startswith("roi_heads.mask_head."):
            number, kind = int(key.split(".")[2]) + 1, key.rpartition(".")[2]
            key = f"roi_heads.mask_head.mask_fcn{number}.{kind}"
        renamed[key] = value
    return renamed


def publish(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    monkeypatch.setattr("segtrain.models.published.download", lambda _: state)


def load_file(model: nn.Module, path: Path, state: State) -> str:
    """By way of a file, which does not stay: it has 80 MB."""
    torch.save(state, path)
    try:
        return load_weights(model, str(path))
    finally:
        path.unlink()


def equal(state: State, model: nn.Module) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, own[key]) for key, value in state.items())


@pytest.fixture(scope="module")
def published() -> State:
    """The weights of a torchvision network for COCO with frozen normalization, under the names of before 0.13."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    state = old_names(with_statistics(mask_rcnn.MaskRCNN(body, 91)).state_dict())
    assert {"backbone.fpn.inner_blocks.3.weight", "rpn.head.conv.bias", "roi_heads.mask_head.mask_fcn4.bias"} < set(
        state
    )
    return state


# --- names


def test_names_of_before_become_those_of_today() -> None:
    today = small().state_dict()
    assert [modern(key) for key in old_names(today)] == list(today)
    assert [modern(key) for key in today] == list(today)
    second = small(version="v2", num_classes=2).state_dict()
    assert [modern(key) for key in second] == list(second)


def test_a_file_of_before_loads_whole(tmp_path: Path) -> None:
    source, model = small(), small()
    state = source.state_dict()
    assert load_file(model, tmp_path / "w.pth", old_names(state)) == f"loaded {len(state)}/{len(state)}"
    assert equal(state, model)


# --- torchvision's COCO_V1, which had eps = 0


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_published_weights_compute_what_torchvision_computes(
    norm: str, published: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, published)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    theirs = mask_rcnn.MaskRCNN(body, 91)
    theirs.load_state_dict(published)
    overwrite_eps(theirs, 0.0)
    ours = MaskRCNN(num_classes=91, norm=norm)  # type: ignore[arg-type]
    classes = [name.strip("_") for name in CLASSES]
    report = load_weights(ours, "torchvision", [name if name != "N/A" else f"no {i}" for i, name in enumerate(classes)])
    assert report.startswith(f"loaded 307/307, {ADJUSTED}, head: 81 of 91 classes by name")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        mine, reference = ours.eval().backbone(image), theirs.eval().backbone(image)
        for level, feature in reference.items():
            assert feature.isfinite().all()
            assert torch.allclose(mine[level], feature, rtol=1e-4, atol=1e-5 * feature.abs().max().item()), level
        theirs.load_state_dict(published)
        overwrite_eps(theirs, 1e-5)  # what it would be without: the test can tell
        assert not torch.allclose(mine["0"], theirs.backbone(image)["0"], rtol=1e-2)


def test_the_published_file_by_its_path_and_once_only(tmp_path: Path) -> None:
    source = with_statistics(small(norm="frozen"))
    state = source.state_dict()
    other, model, again = small(norm="frozen"), small(norm="frozen"), small(norm="frozen")
    assert load_file(other, tmp_path / "mine.pth", state) == "loaded 142/142"
    assert equal(state, other)  # any other file had today's eps
    assert Path(COCO.url).name == TRAINED_WITHOUT_EPS
    assert load_file(model, tmp_path / TRAINED_WITHOUT_EPS, state) == f"loaded 142/142, {ADJUSTED}"
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == {key.replace("running_var", "weight") for key in state if key.endswith("running_var")}
    load_file(again, tmp_path / "best.pth", model.state_dict())
    assert equal(model.state_dict(), again)


def test_the_second_version_keeps_its_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    source = mask_rcnn.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91)
    state = with_statistics(source).state_dict()
    publish(monkeypatch, state)
    model = MaskRCNN(num_classes=91, version="v2")
    assert load_weights(model, "torchvision") == "loaded 432/432"
    assert equal(state, model)


def test_other_backbones_have_no_published_weights() -> None:
    with pytest.raises(ConfigError, match=r"maskrcnn with model\.backbone=resnet50"):
        load_weights(small(), "torchvision")


# --- other classes


def test_heads_go_to_the_classes_of_the_same_name(published: State, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, published)
    model = MaskRCNN(num_classes=5, norm="frozen")
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, "torchvision", ["background", "Dog", "unicorn", "person", "N/A"])
    assert report == (
        f"loaded 307/307, {ADJUSTED}, head: 3 of 5 classes by name (background, Dog, person), new: unicorn, N/A"
    )
    places = {0: 0, 1: CLASSES.index("dog"), 3: CLASSES.index("person")}
    for layer, rows in (
        ("roi_heads.box_predictor.cls_score", 1),
        ("roi_heads.box_predictor.bbox_pred", 4),
        ("roi_heads.mask_predictor.mask_fcn_logits", 1),
    ):
        for key in (f"{layer}.weight", f"{layer}.bias"):
            ours, theirs = model.state_dict()[key], published[key]
            for place in range(5):
                mine = ours[rows * place : rows * (place + 1)]
                if place in places:
                    there = rows * places[place]
                    assert torch.equal(mine, theirs[there : there + rows]), key
                else:
                    assert torch.equal(mine, fresh[key][rows * place : rows * (place + 1)]), key


def test_boxes_of_a_class_are_its_own_four_numbers() -> None:
    """What `rows_per_class` says, asked of torchvision: one class's rows move that class's boxes and no other's."""
    model = small(4).eval()
    heads = model.roi_heads
    proposals, features = [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], torch.randn(1, 1024)
    with torch.inference_mode():
        logits, before = heads.box_predictor(features)
        decoded = heads.box_coder.decode(before, proposals)
        heads.box_predictor.bbox_pred.bias[2 * 4 : 3 * 4] += 1
        moved = heads.box_coder.decode(heads.box_predictor(features)[1], proposals) - decoded
    assert logits.shape == (1, 4)
    assert moved.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [2]


def test_without_names_heads_of_another_count_are_new(tmp_path: Path) -> None:
    source, model = small(3), small(5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_file(model, tmp_path / "w.pth", source.state_dict())
    count = len(before)
    assert report == f"loaded {count - 6}/{count}, head new (3 -> 5 classes)"
    new = {f"{layer}.{kind}" for layer in MaskRCNN.class_layers for kind in ("weight", "bias")}
    state = source.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in new else state[key]), key


# --- a backbone alone


@pytest.mark.parametrize(("norm", "tensors"), [("batch", 120), ("frozen", 100)])
def test_imagenet_fills_the_resnet(norm: str, tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_statistics(torchvision.models.resnet18(weights=None))
    asked: list[Any] = []
    monkeypatch.setattr("segtrain.models.published.download", lambda what: asked.append(what) or source.state_dict())
    model = small(norm=norm)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, "imagenet")
    assert report == f"loaded {tensors}/{tensors} backbone, pyramid and heads new, fc dropped"
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1]
    for key, value in model.state_dict().items():
        inner = key.removeprefix("backbone.body.")
        assert torch.equal(value, source.state_dict()[inner] if inner != key else before[key]), key


def test_files_with_a_backbone_only(tmp_path: Path) -> None:
    source = small()
    state = {key: value for key, value in source.state_dict().items() if key.startswith("backbone.")}
    for name, chosen in (
        ("today", state),
        ("before", old_names(state)),
        ("body", {key: value for key, value in state.items() if ".body." in key}),
    ):
        model = small()
        report = load_file(model, tmp_path / f"{name}.pth", chosen)
        what = "pyramid and heads new" if name == "body" else "head new"
        assert report == f"loaded {len(chosen)}/{len(chosen)} backbone, {what}"
        own = model.state_dict()
        names = list(state) if name != "body" else list(chosen)
        assert all(torch.equal(own[key], state[key]) for key in names)


# --- frozen normalization and counted one


def test_frozen_and_batch_normalization_take_each_others_weights(tmp_path: Path) -> None:
    counted = with_statistics(small(version="v2"))
    frozen, back = small(version="v2", norm="frozen"), small(version="v2")
    total = len(frozen.state_dict())
    assert total == len(counted.state_dict()) - 20  # the ResNet's counters
    assert load_file(frozen, tmp_path / "a.pth", counted.state_dict()) == f"loaded {total}/{total}"
    assert load_file(back, tmp_path / "b.pth", frozen.state_dict()) == f"loaded {total}/{total}"
    state = counted.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in frozen.state_dict().items())
    assert all(torch.equal(back.state_dict()[key], state[key]) for key in frozen.state_dict())


def test_a_lost_normalization_is_no_lost_counter(tmp_path: Path) -> None:
    state = small(version="v2").state_dict()
    for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        del state[f"backbone.body.bn1.{kind}"]
    with pytest.raises(CheckpointError, match="5 missing"):
        load_file(small(version="v2"), tmp_path / "w.pth", state)


def test_another_network_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for other in (small(version="v2"), torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn):
        made = other if isinstance(other, nn.Module) else other(weights=None, weights_backbone=None)
        with pytest.raises(CheckpointError, match="do not fit the network"):
            load_file(model, tmp_path / "w.pth", made.state_dict())
        assert equal(before, model)
