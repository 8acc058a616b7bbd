"""Weights from files and from torchvision: what fits is loaded whole, what does not is named."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ConfigError
from segtrain.models.deeplab import DeepLabV3, DeepLabV3Plus
from segtrain.models.fcn import FCN, FCNTorchvision
from segtrain.models.lraspp import LRASPP
from segtrain.models.pretrained import load_weights
from segtrain.models.unet import UNet

KERAS_WEIGHTS = Path(__file__).parents[2] / "../shared/weights/mobilenet_v2_keras160_features.pth"


def small(num_classes: int = 3, **options: Any) -> FCNTorchvision:
    return FCNTorchvision(num_classes=num_classes, backbone="resnet18", output_stride=32, **options)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {key for key in a.keys() & b.keys() if torch.equal(a[key], b[key])}


def refused(model: nn.Module, weights: object) -> str:
    """The error text; the model must come out untouched."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, str(weights))
    assert same(before, model.state_dict()) == set(before)
    return str(caught.value)


def test_none_changes_nothing() -> None:
    model = small()
    before = snapshot(model)
    assert load_weights(model, "none") == "random initialisation"
    assert same(before, model.state_dict()) == set(before)


# --- whole networks


def test_whole_state_dict(tmp_path: Path) -> None:
    source, model = small(), small()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    count = len(source.state_dict())
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count}"
    assert same(source.state_dict(), model.state_dict()) == set(source.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_wrapped_and_prefixed(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    source, model = UNet(num_classes=3, base_channels=2), UNet(num_classes=3, base_channels=2)
    state: dict[str, Any] = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"))
    assert same(source.state_dict(), model.state_dict()) == set(source.state_dict())


def test_our_checkpoint_is_verified(tmp_path: Path) -> None:
    source, model = UNet(num_classes=3, base_channels=2), UNet(num_classes=3, base_channels=2)
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"model": source.state_dict(), "epoch": 1})
    count = len(source.state_dict())
    assert load_weights(model, str(path)) == f"loaded {count}/{count}"
    assert same(source.state_dict(), model.state_dict()) == set(source.state_dict())
    state = checkpoint.read(path)
    state["model"]["classifier.bias"] += 1
    torch.save(state, path)
    assert "does not match its SHA-256 digest" in refused(model, path)


def test_other_class_count_leaves_the_head_new(tmp_path: Path) -> None:
    source, model = small(21), small(3)
    before = snapshot(model)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    count = len(before)
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report == f"loaded {count - 4}/{count}, head new (21 -> 3 classes)"
    heads = {f"{head}.4.{part}" for head in ("classifier", "aux_classifier") for part in ("weight", "bias")}
    after = model.state_dict()
    assert set(before) - same(source.state_dict(), after) == heads
    assert heads <= same(before, after)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: UNet(num_classes=n, base_channels=2),
        lambda n: LRASPP(num_classes=n),
        lambda n: DeepLabV3(num_classes=n, backbone="resnet18", head_conv=False),
        lambda n: DeepLabV3Plus(num_classes=n, backbone="resnet18", aux=True),
        lambda n: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=n
        ),
    ],
)
def test_every_network_knows_its_class_layers(build: Any, tmp_path: Path) -> None:
    source, model = build(7), build(4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report.endswith(", head new (7 -> 4 classes)")
    after = model.state_dict()
    fits = {key for key, value in source.state_dict().items() if value.shape == after[key].shape}
    assert same(source.state_dict(), after) == fits


def test_aux_of_the_file_is_dropped_when_off(tmp_path: Path) -> None:
    source, model = small(), small(aux=False)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    count = len(model.state_dict())
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count}, aux_classifier dropped"
    assert same(source.state_dict(), model.state_dict()) == set(model.state_dict())


def test_aux_that_the_file_lacks_is_an_error(tmp_path: Path) -> None:
    torch.save(small(aux=False).state_dict(), tmp_path / "w.pth")
    text = refused(small(), tmp_path / "w.pth")
    assert "8 missing" in text
    assert "set model.aux=false" in text


def test_torchvision_model_takes_its_own_weights(tmp_path: Path) -> None:
    def build(num_classes: int) -> nn.Module:
        return torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        )

    source, model = build(21), build(2)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert load_weights(model, str(tmp_path / "w.pth")) == "loaded 330/334, head new (21 -> 2 classes)"


# --- backbones alone


def test_classification_resnet_with_and_without_fc(tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None)
    count = len(source.state_dict()) - 2
    for drop in ((), ("fc.weight", "fc.bias")):
        state = {key: value for key, value in source.state_dict().items() if key not in drop}
        torch.save(state, tmp_path / "w.pth")
        model = small()
        before = snapshot(model)
        report = load_weights(model, str(tmp_path / "w.pth"))
        assert report == f"loaded {count}/{count} backbone, head new" + ("" if drop else ", fc dropped")
        assert len(same(source.state_dict(), model.backbone.state_dict())) == count
        heads = {key for key in before if not key.startswith("backbone.")}
        assert heads <= same(before, model.state_dict())


def test_files_older_than_the_batch_counters(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pth")
    assert load_weights(small(), str(tmp_path / "w.pth")) == "loaded 100/100 backbone, head new, fc dropped"


def test_mobilenet_features_with_and_without_classifier(tmp_path: Path) -> None:
    source = torchvision.models.mobilenet_v2(weights=None)
    for prefix in ("", "module."):
        torch.save({prefix + k: v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
        model = DeepLabV3Plus(num_classes=2, backbone="mobilenet_v2")
        report = load_weights(model, str(tmp_path / "w.pth"))
        assert report == "loaded 312/312 backbone, head new, classifier dropped"
        assert len(same(source.features.state_dict(), model.backbone.state_dict())) == 312
    large = torchvision.models.mobilenet_v3_large(weights=None)
    torch.save(large.state_dict(), tmp_path / "w.pth")
    report = load_weights(LRASPP(num_classes=2), str(tmp_path / "w.pth"))
    assert report == "loaded 308/308 backbone, head new, classifier dropped"


def test_backbone_of_a_segmentation_network(tmp_path: Path) -> None:
    state = {k: v for k, v in small().state_dict().items() if k.startswith("backbone.")}
    torch.save(state, tmp_path / "w.pth")
    model = DeepLabV3Plus(num_classes=2, backbone="resnet18")
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {len(state)}/{len(state)} backbone, head new"


def test_the_keras_mobilenet_file() -> None:
    if not KERAS_WEIGHTS.is_file():
        pytest.skip("no shared weights on this machine")
    model = DeepLabV3Plus(num_classes=3, backbone="mobilenet_v2")
    assert load_weights(model, str(KERAS_WEIGHTS)) == "loaded 312/312 backbone, head new"
    content = {key.removeprefix("features."): value for key, value in checkpoint.read(KERAS_WEIGHTS).items()}
    assert len(same(content, model.backbone.state_dict())) == 312


def test_gray_images_get_the_sum_of_the_color_filters(tmp_path: Path) -> None:
    source = small(num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    torch.save(source.backbone.state_dict(), tmp_path / "backbone.pth")
    gray = torch.randn(1, 1, 40, 40)
    for name, start in (("whole", "loaded 136/136"), ("backbone", "loaded 120/120 backbone, head new")):
        model = small(num_classes=3, in_channels=1).eval()
        report = load_weights(model, str(tmp_path / f"{name}.pth"))
        assert report == f"{start}, first convolution summed over its 3 input channels"
        want, got = source.backbone(gray.expand(-1, 3, -1, -1))[-1], model.backbone(gray)[-1]
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


# --- what must not load


def test_misfits_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    del state["backbone.bn1.weight"]
    state["backbone.extra.weight"] = torch.zeros(1)
    state["backbone.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    text = refused(small(), tmp_path / "w.pth")
    assert "error[checkpoint] the weights do not fit the network" in text
    assert "1 missing, 1 unexpected, 1 of another shape" in text
    assert "missing: backbone.bn1.weight" in text
    assert "unexpected: backbone.extra.weight" in text
    assert "backbone.conv1.weight (64, 3, 3, 3), the network's (64, 3, 7, 7)" in text
    assert str(tmp_path / "w.pth") in text


def test_a_backbone_of_another_depth_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "w.pth")
    text = refused(small(), tmp_path / "w.pth")
    assert "unexpected: layer1.2.conv1.weight" in text
    assert "choose the model and model.backbone the file was made for" in text


def test_a_truncated_backbone_is_refused(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2(weights=None).state_dict()
    part = {key: value for key, value in state.items() if not key.startswith("features.18.")}
    torch.save(part, tmp_path / "w.pth")
    text = refused(DeepLabV3Plus(num_classes=2, backbone="mobilenet_v2"), tmp_path / "w.pth")
    assert "6 missing" in text
    assert "missing: 18.0.weight" in text


def test_a_head_of_another_width_is_not_a_new_class_count(tmp_path: Path) -> None:
    torch.save(UNet(num_classes=5, base_channels=4).state_dict(), tmp_path / "w.pth")
    text = refused(UNet(num_classes=3, base_channels=2), tmp_path / "w.pth")
    assert "of another shape" in text


def test_a_backbone_for_a_network_without_one(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    assert "the file holds a backbone, and UNet has none" in refused(
        UNet(num_classes=2, base_channels=2), tmp_path / "w.pth"
    )


def test_a_file_that_is_no_state_dict(tmp_path: Path) -> None:
    for content in ({"epoch": 3, "loss": 0.5}, {}, {"a": torch.zeros(1), "epoch": 3}):
        torch.save(content, tmp_path / "w.pth")
        assert "the file is not a state_dict" in refused(small(), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"not a torch file")
    assert str(tmp_path / "w.pth") in refused(small(), tmp_path / "w.pth")


def test_a_path_that_is_missing_or_a_misspelt_keyword(tmp_path: Path) -> None:
    assert "no such weights file" in refused(small(), tmp_path / "none.pth")
    text = refused(small(), "imagnet")
    assert "did you mean model.weights=imagenet?" in text
    assert "none, imagenet, torchvision, or the path of a .pt or .pth file" in text


# --- torchvision's published weights, without a network


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def cut_the_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", fail)


def test_imagenet_loads_the_backbone_from_the_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_the_network(monkeypatch, AssertionError("the cache must be enough"))
    source = torchvision.models.resnet18(weights=None)
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.save(source.state_dict(), hub / Path(published.url).name)
    model = small()
    assert load_weights(model, "imagenet") == "loaded 120/120 backbone, head new, fc dropped"
    assert len(same(source.state_dict(), model.backbone.state_dict())) == 120


def test_torchvision_loads_the_whole_network_from_the_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_the_network(monkeypatch, AssertionError("the cache must be enough"))
    theirs = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    published = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    torch.save(theirs.state_dict(), hub / Path(published.url).name)
    model = LRASPP(num_classes=21)
    assert load_weights(model, "torchvision") == "loaded 319/319"
    assert same(theirs.state_dict(), model.state_dict()) == set(theirs.state_dict())
    assert load_weights(LRASPP(num_classes=2), "torchvision") == "loaded 315/319, head new (21 -> 2 classes)"


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda: FCNTorchvision(num_classes=2), "fcn_resnet50"),
        (lambda: FCNTorchvision(num_classes=2, backbone="resnet101"), "fcn_resnet101"),
        (lambda: DeepLabV3(num_classes=2), "deeplabv3_resnet50"),
        (lambda: DeepLabV3(num_classes=2, backbone="resnet101"), "deeplabv3_resnet101"),
        (lambda: DeepLabV3(num_classes=2, backbone="mobilenet_v3_large"), "deeplabv3_mobilenet_v3_large"),
        (lambda: LRASPP(num_classes=2), "lraspp_mobilenet_v3_large"),
    ],
)
def test_torchvision_asks_for_the_right_file(
    build: Any, published: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_the_network(monkeypatch, urllib.error.URLError("no route to host"))
    url = torchvision.models.get_model_weights(published)["COCO_WITH_VOC_LABELS_V1"].url
    with torch.device("meta"):
        model = build()
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, "torchvision")
    assert url in str(caught.value)


def test_no_network_says_where_to_put_the_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_the_network(monkeypatch, urllib.error.URLError("Temporary failure in name resolution"))
    text = refused(small(), "imagenet")
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert "download failed: <urlopen error Temporary failure in name resolution>" in text
    assert published.url in text
    assert str(hub) in text
    assert "model.weights=PATH or model.weights=none" in text
    assert capsys.readouterr().out == ""  # stdout is for results


class Reply(io.BytesIO):
    def info(self) -> Message:
        return Message()


def test_a_download_with_another_hash_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_: Reply(b"an error page"))
    text = refused(small(), "imagenet")
    digest = hashlib.sha256(b"an error page").hexdigest()
    assert f'download failed: invalid hash value (expected "f37072fd", got "{digest}")' in text
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_named(hub: Path) -> None:
    path = hub / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    path.write_bytes(b"half a download")
    text = refused(small(), "imagenet")
    assert "15 bytes that torch cannot read" in text
    assert str(path) in text


@pytest.mark.parametrize("weights", ["imagenet", "torchvision"])
def test_networks_without_published_weights_say_so(weights: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_weights(UNet(num_classes=2, base_channels=2), weights)
    text = str(caught.value)
    assert "UNet" in text
    assert f"model.weights={weights}" in text
    assert "model.weights=none" in text
    with pytest.raises(ConfigError, match="no segmentation weights for this FCNTorchvision"):
        load_weights(small(), "torchvision")


def test_torchvision_builders_load_their_own_imagenet_weights() -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ConfigError) as caught:
        load_weights(model, "imagenet")
    assert "model.weights=none model.weights_backbone=DEFAULT" in str(caught.value)


# --- classification networks in which a layer has a name of ours


def test_a_classifier_of_the_same_name_does_not_make_a_whole_network(tmp_path: Path) -> None:
    # mobilenet_v2's last layer is classifier.1, as that of DeepLabV3 without the 3x3 convolution.
    source = torchvision.models.mobilenet_v2(weights=None)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = DeepLabV3(
        num_classes=3, backbone="mobilenet_v2", last_channels=320, atrous_rates=[], head_conv=False, aux=False
    )
    assert "classifier.1.weight" in model.state_dict()
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report == "loaded 306/306 backbone, head new, classifier dropped, 18 dropped"
    assert len(same(source.features.state_dict(), model.backbone.state_dict())) == 306


def test_xception_takes_timms_classification_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("xception65")
    model = DeepLabV3Plus(num_classes=3, backbone="xception65")
    count = len(model.backbone.state_dict())
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count} backbone, head new, head dropped"
    assert len(same(source.state_dict(), model.backbone.state_dict())) == count
    with pytest.raises(ConfigError) as caught:
        load_weights(model, "imagenet")
    assert "model.backbone=timm/xception65 has timm's" in str(caught.value)


# --- VGG-16 for classification into convolutional networks


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """torchvision's keys and shapes; one number per tensor, so that half a gigabyte needs no place."""
    with torch.device("meta"):
        state = torchvision.models.vgg16(weights=None).state_dict()
    return {key: torch.tensor(float(index + 1)).expand(value.shape) for index, (key, value) in enumerate(state.items())}


def fcn(stride: Any = 32, num_classes: int = 3, **options: Any) -> FCN:
    return FCN(num_classes=num_classes, stride=stride, **{"fc_channels": 32, **options})


def test_vgg_fills_what_became_convolutions(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(vgg16, tmp_path / "w.pth")
    model = fcn(stride=16)
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report == "loaded 30/36, new: score_fr, upscore2, score_pool4, upscore16, classifier.6 dropped"
    assert model.fc6.weight.unique().tolist() == [vgg16["classifier.0.weight"].flatten()[0]]
    assert model.fc7.bias.unique().tolist() == [vgg16["classifier.3.bias"][0]]


def test_vgg_features_alone_leave_the_hidden_layers_new(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({key: value for key, value in vgg16.items() if key.startswith("features.")}, tmp_path / "w.pth")
    assert load_weights(fcn(), str(tmp_path / "w.pth")) == "loaded 26/33, new: fc6, fc7, score_fr, upscore"


def test_imagenet_of_a_network_without_a_classifying_backbone(
    vgg16: dict[str, Tensor], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_the_network(monkeypatch, AssertionError("the cache must be enough"))
    torch.save(vgg16, hub / Path(torchvision.models.VGG16_Weights.IMAGENET1K_V1.url).name)
    assert load_weights(fcn(), "imagenet") == "loaded 30/33, new: score_fr, upscore, classifier.6 dropped"


@pytest.mark.parametrize("fault", ["features.28.weight", "features.0.bias", "classifier.0.bias"])
def test_a_vgg_with_a_tensor_missing_is_refused(vgg16: dict[str, Tensor], fault: str, tmp_path: Path) -> None:
    torch.save({key: value for key, value in vgg16.items() if key != fault}, tmp_path / "w.pth")
    text = refused(fcn(), tmp_path / "w.pth")
    assert "1 missing" in text
    assert {"classifier.0.bias": "fc6.bias"}.get(fault, fault.replace("features", "backbone")) in text


def test_a_vgg_with_a_layer_missing_or_more_is_refused(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({key: value for key, value in vgg16.items() if not key.startswith("features.28.")}, tmp_path / "w.pth")
    assert "2 missing" in refused(fcn(), tmp_path / "w.pth")
    torch.save({**vgg16, "features.31.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert "unexpected: backbone.31.weight" in refused(fcn(), tmp_path / "w.pth")


def test_vgg_as_a_plain_backbone(tmp_path: Path) -> None:
    source = torchvision.models.vgg16_bn(weights=None).features
    torch.save({f"features.{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.pth")
    model = DeepLabV3Plus(num_classes=2, backbone="vgg16_bn")
    count = len(source.state_dict())
    assert load_weights(model, str(tmp_path / "w.pth")) == f"loaded {count}/{count} backbone, head new"
    assert len(same(source.state_dict(), model.backbone.state_dict())) == count


# --- staged initialization


def mark(model: nn.Module) -> dict[str, Tensor]:
    """Fills a network with values that no fresh one has."""
    for index, value in enumerate(model.state_dict().values()):
        value.fill_(index + 0.5)
    return snapshot(model)


def test_a_finer_fcn_starts_from_a_coarser_one(tmp_path: Path) -> None:
    coarse, model = fcn(32), fcn(16)
    before, source = snapshot(model), mark(coarse)
    torch.save(source, tmp_path / "w.pth")
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report == "loaded 32/36, new: upscore2, score_pool4, upscore16, dropped: upscore"
    after = model.state_dict()
    assert same(source, after) == set(source) - {"upscore.weight"}
    fresh = {key for key in after if key.split(".")[0] in ("upscore2", "score_pool4", "upscore16")}
    assert same(before, after) == fresh


def test_the_finest_fcn_keeps_the_layers_of_the_middle_one(tmp_path: Path) -> None:
    middle, model = fcn(16), fcn(8)
    source = mark(middle)
    torch.save(source, tmp_path / "w.pth")
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report == "loaded 35/39, new: upscore_pool4, score_pool3, upscore8, dropped: upscore16"
    assert same(source, model.state_dict()) == set(source) - {"upscore16.weight"}


def test_staging_forgives_nothing_else(tmp_path: Path) -> None:
    source = dict(mark(fcn(32)))
    del source["score_fr.bias"], source["fc7.weight"]
    source["pool5.weight"] = torch.zeros(1)
    torch.save(source, tmp_path / "w.pth")
    text = refused(fcn(16), tmp_path / "w.pth")
    assert "2 missing, 1 unexpected" in text
    assert "missing: fc7.weight, score_fr.bias" in text


def test_staging_for_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(mark(fcn(32, num_classes=21)), tmp_path / "w.pth")
    report = load_weights(fcn(16), str(tmp_path / "w.pth"))
    assert report == (
        "loaded 30/36, head new (21 -> 3 classes), new: upscore2, score_pool4, upscore16, dropped: upscore"
    )
