"""Backbones of the timm library: what comes out, what is refused, whose weights fit."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segtrain import signatures
from segtrain.errors import CheckpointError, ConfigError
from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.timm_features import TimmFeatures
from segtrain.models.deeplab import DeepLabV3Plus
from segtrain.models.pretrained import load_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


def net(backbone: str = "timm/resnet18", **options: Any) -> DeepLabV3Plus:
    return DeepLabV3Plus(num_classes=3, backbone=backbone, **options)


def refused(backbone: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_backbone(backbone, **options)
    return str(caught.value)


# --- features


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(
    "name", ["resnet34d", "efficientnet_b0", "convnext_atto", "mobilenetv3_large_100", "xception65"]
)
def test_channels_and_strides_are_what_it_says(timm: Any, name: str, output_stride: Any) -> None:
    with torch.device("meta"):
        backbone = build_backbone(f"timm/{name}", output_stride).eval()
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.strides == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [feature.shape[1] for feature in features] == backbone.out_channels
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [(s, s) for s in backbone.strides]
    assert backbone.name == f"timm/{name}"


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "efficientnet_b0", "xception65"])
def test_totals(timm: Any, name: str, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(f"timm/{name}", 16)
    assert sum(p.numel() for p in backbone.parameters()) == goldens["parameters"][f"timm.{name}(features,os16)"]


@torch.inference_mode()
def test_features_are_timms_own(timm: Any) -> None:
    ours = build_backbone("timm/resnet18", 16).eval()
    theirs = timm.create_model("resnet18", features_only=True, output_stride=16).eval()
    theirs.load_state_dict(ours.body.state_dict())
    image = torch.randn(1, 3, 61, 35)
    for a, b in zip(ours(image), theirs(image)[1:], strict=True):
        assert torch.equal(a, b)


@torch.inference_mode()
def test_channels_come_first_where_timm_has_them_last(timm: Any) -> None:
    backbone = build_backbone("timm/mambaout_femto", 32).eval()
    assert backbone.channels_last
    assert [f.shape[1] for f in backbone(torch.randn(1, 3, 64, 96))] == backbone.out_channels


@pytest.mark.parametrize("size", [(1, 1), (17, 5), (65, 81)])
@torch.inference_mode()
def test_a_whole_network_on_it(timm: Any, size: tuple[int, int]) -> None:
    model = net(in_channels=1, aux=True).eval()
    assert model(torch.randn(1, 1, *size))["out"].shape == (1, 3, *size)


# --- what is refused


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    text = refused("timm/resnet34d")
    assert "timm library, which is not installed" in text
    assert "pip install -e '.[timm]'" in text


def test_nobody_who_does_not_ask_for_timm_imports_it() -> None:
    code = (
        "import sys, segtrain.models.pretrained; from segtrain.models.deeplab import DeepLabV3Plus; "
        "DeepLabV3Plus(num_classes=2, backbone='resnet18'); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_unknown_names_get_the_nearest(timm: Any) -> None:
    text = refused("timm/resnet34dd")
    assert f"timm {timm.__version__} has no network 'resnet34dd'" in text
    assert "did you mean model.backbone=timm/resnet34d?" in text
    text = refused("timm/resnet50.a1_in2k")
    assert "timm has no weights 'a1_in2k' for resnet50" in text
    assert "did you mean model.backbone=timm/resnet50.a1_in1k?" in text


@pytest.mark.parametrize("name", ["vgg16", "densenet121", "dla34"])
def test_a_network_that_cannot_be_dilated_names_the_stride_that_works(timm: Any, name: str) -> None:
    text = refused(f"timm/{name}", output_stride=16)
    assert f"timm/{name} cannot be a backbone at output stride 16: timm cannot dilate it" in text
    assert "model.output_stride=32 or another network, such as timm/resnet34d" in text
    with torch.device("meta"):
        assert build_backbone(f"timm/{name}", 32).strides == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "its features have the strides 16, 16, 16, 16"),
        ("selecsls42b", "its features have the strides 8, 16, 32, 64"),
        ("swin_tiny_patch4_window7_224", "it takes images of one size only"),
    ],
)
def test_networks_without_fitting_features_name_others(timm: Any, name: str, reason: str) -> None:
    text = refused(f"timm/{name}", output_stride=32)
    assert reason in text
    assert "model.output_stride" not in text  # no other stride would help
    assert "another network, such as timm/resnet34d" in text


@pytest.mark.parametrize(("key", "value"), [("low_level", "unit"), ("last_channels", 320)])
def test_arguments_of_other_backbones_are_refused(timm: Any, key: str, value: Any) -> None:
    assert f"{key} has no meaning for the backbone timm/resnet18" in refused("timm/resnet18", **{key: value})


@pytest.mark.parametrize("backbone", ["timm/resnet34d", "timm/resnet50.a1_in1k", "xception65", "vgg16_bn"])
def test_the_config_takes_it(backbone: str) -> None:
    signatures.check({"num_classes": 2, "backbone": backbone}, DeepLabV3Plus, "model")


@pytest.mark.parametrize(
    ("backbone", "fix"),
    [("resnet5O", "did you mean model.backbone=resnet50?"), ("timm", None), ("timm/", None)],
)
def test_the_config_refuses_other_names_before_anything_is_built(backbone: str, fix: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        signatures.check({"num_classes": 2, "backbone": backbone}, DeepLabV3Plus, "model")
    assert "'xception65'" in str(caught.value.expected)
    assert "'vgg16_bn' or timm/NAME" in str(caught.value.expected)
    assert caught.value.fix == fix


# --- weights


def same_as(body: nn.Module, source: nn.Module) -> int:
    """How many tensors of `source` are in `body`, by content."""
    own = [value for value in body.state_dict().values() if value.ndim == 4]
    return sum(any(v.shape == o.shape and torch.equal(v, o) for o in own) for v in source.state_dict().values())


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("mobilenetv3_small_050", "classifier")])
def test_a_classification_file_loads_without_its_classifier(timm: Any, name: str, head: str, tmp_path: Path) -> None:
    source = timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = net(f"timm/{name}")
    count = len(model.backbone.state_dict())
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count} backbone, head new, {head} dropped"
    convs = sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules())
    assert same_as(model.backbone, source) == convs


def test_layers_that_timm_renames_for_features_load_too(timm: Any, tmp_path: Path) -> None:
    source = timm.create_model("densenet121", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = net("timm/densenet121", output_stride=32)
    count = len(model.backbone.state_dict())
    assert (
        load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count} backbone, head new, classifier dropped"
    )
    assert torch.equal(model.backbone.body.state_dict()["features_conv0.weight"], source.features.conv0.weight)


def test_features_alone_and_whole_networks_load(timm: Any, tmp_path: Path) -> None:
    source = net()
    for name, state in (("whole", source.state_dict()), ("body", source.backbone.body.state_dict())):
        torch.save(state, tmp_path / "w.pth")
        model = net()
        report = load_weights(model, str(tmp_path / "w.pth"))
        assert report.endswith("backbone, head new") == (name == "body")
        assert torch.equal(model.backbone.body.conv1.weight, source.backbone.body.conv1.weight)


def test_color_weights_for_a_gray_image(timm: Any, tmp_path: Path) -> None:
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = net(in_channels=1)
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report.endswith("head new, fc dropped, first convolution adapted to 1 channels by timm")
    assert torch.allclose(model.backbone.body.conv1.weight, source.conv1.weight.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "other"])
def test_misfits_are_named_and_nothing_is_loaded(timm: Any, fault: str, tmp_path: Path) -> None:
    state = dict(timm.create_model("resnet34" if fault == "other" else "resnet18").state_dict())
    named = {"missing": "bn1.weight", "extra": "more.weight", "shape": "conv1.weight", "other": "layer1.2.bn1.bias"}
    if fault == "missing":
        del state["bn1.weight"]
    elif fault in ("extra", "shape"):
        state[named[fault]] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, str(tmp_path / "w.pth"))
    text = str(caught.value)
    assert "the weights do not fit timm/resnet18, tensor by tensor" in text
    assert str(tmp_path / "w.pth") in text
    assert named[fault] in text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def offline(monkeypatch: pytest.MonkeyPatch, fail: Any) -> None:
    from timm.models import _builder

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", fail)


def test_imagenet_takes_timms_own_weights(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = timm.create_model("resnet18"), []

    def fetch(where: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(where)
        return dict(source.state_dict())

    offline(monkeypatch, fetch)
    model = net("timm/resnet18.a1_in1k")
    count = len(model.backbone.state_dict())
    assert load_weights(model, "imagenet") == f"loaded {count}/{count} backbone, head new"
    assert asked == ["timm/resnet18.a1_in1k"]
    assert torch.equal(model.backbone.body.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_imagenet_says_so_where_images_must_be_normalized_otherwise(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("mobilenetv3_small_050")
    offline(monkeypatch, lambda *_, **__: dict(source.state_dict()))
    model = net("timm/mobilenetv3_small_050")
    mean = list(source.pretrained_cfg["mean"])
    said = f"made for model.normalize.mean={mean}" in load_weights(model, "imagenet")
    assert said == (mean != [0.485, 0.456, 0.406])
    monkeypatch.setitem(model.backbone.settings, "mean", (0.5, 0.5, 0.5))
    assert "made for model.normalize.mean=[0.5, 0.5, 0.5]" in load_weights(model, "imagenet")


def test_no_network_says_what_to_do(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    offline(monkeypatch, fail)
    with pytest.raises(CheckpointError) as caught:
        load_weights(net(), "imagenet")
    text = str(caught.value)
    assert "timm could not load the weights of timm/resnet18: no route to host" in text
    assert "model.weights=PATH or model.weights=none" in text


def test_a_network_without_published_weights_says_so(timm: Any) -> None:
    bare = next(name for name in timm.list_models("resnet*") if not timm.models.is_model_pretrained(name))
    with pytest.raises(ConfigError, match=f"timm publishes no weights for timm/{bare}"):
        TimmFeatures(f"timm/{bare}").published()
