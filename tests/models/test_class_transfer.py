"""The last layers of a network for other classes: what goes where, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from segtrain import checkpoint
from segtrain.errors import CheckpointError
from segtrain.models.class_transfer import ClassMap, class_dims
from segtrain.models.fcn import FCN, FCNTorchvision
from segtrain.models.lraspp import LRASPP
from segtrain.models.pretrained import load_weights
from segtrain.models.unet import UNet

PETS = ["background", "cat", "dog"]


def unet(count: int = 3) -> UNet:
    model = UNet(num_classes=count, base_channels=2, depth=1)
    nn.init.normal_(model.classifier.bias)
    return model


def saved(path: Path, model: nn.Module, classes: list[str] | None) -> str:
    """A checkpoint of ours, as a run would leave it, or a plain state_dict where there are no names."""
    if classes is None:
        torch.save(model.state_dict(), path)
    else:
        checkpoint.save(path, {"model": model.state_dict(), "classes": classes, "epoch": 1})
    return str(path)


def head(model: nn.Module) -> tuple[Tensor, Tensor]:
    return model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.pt"


# --- by name


def test_rows_go_to_the_classes_of_the_same_name(path: Path) -> None:
    source, model = unet(4), unet(3)
    fresh, theirs = head(model), head(source)
    report = load_weights(model, saved(path, source, ["background", "car", "cat", "sky"]), PETS)
    count = len(model.state_dict())
    assert report == f"loaded {count}/{count}, head: 2 of 3 classes by name (background, cat), new: dog"
    for ours, new, old in zip(head(model), fresh, theirs, strict=True):
        assert torch.equal(ours[[0, 1]], old[[0, 2]])
        assert torch.equal(ours[2], new[2])
        assert not torch.equal(ours[2], old[2])
    body = [key for key in source.state_dict() if not key.startswith("classifier.")]
    assert all(torch.equal(source.state_dict()[key], model.state_dict()[key]) for key in body)


def test_another_order_permutes_the_rows(path: Path) -> None:
    source, model = unet(), unet()
    report = load_weights(model, saved(path, source, ["dog", "background", "cat"]), PETS)
    assert report.endswith("head: 3 of 3 classes by name (background, cat, dog)")
    for ours, theirs in zip(head(model), head(source), strict=True):
        assert torch.equal(ours, theirs[[1, 2, 0]])


def test_the_same_number_of_other_classes_is_no_reason_to_copy(path: Path) -> None:
    source, model = unet(), unet()
    fresh = head(model)
    report = load_weights(model, saved(path, source, ["background", "car", "sky"]), PETS)
    assert report.endswith("head: 1 of 3 classes by name (background), new: cat, dog")
    assert torch.equal(head(model)[0][1:], fresh[0][1:])


def test_the_case_of_letters_does_not_matter_but_the_rest_does(path: Path) -> None:
    source, model = unet(), unet()
    report = load_weights(model, saved(path, source, ["Background", "CAT", "dogs"]), PETS)
    assert report.endswith("head: 2 of 3 classes by name (background, cat), new: dog")


def test_the_same_names_load_whole_and_nothing_is_said(path: Path) -> None:
    source, model = unet(), unet()
    count = len(model.state_dict())
    assert load_weights(model, saved(path, source, ["background", "Cat", "dog"]), PETS) == f"loaded {count}/{count}"
    assert all(torch.equal(a, b) for a, b in zip(head(model), head(source), strict=True))


def test_no_common_name_leaves_the_head_new(path: Path) -> None:
    source, model = unet(2), unet()
    fresh, count = head(model), len(model.state_dict())
    report = load_weights(model, saved(path, source, ["road", "sky"]), PETS)
    assert report == f"loaded {count - 2}/{count}, head new (no class of the 2 in the file has a name of ours)"
    assert all(torch.equal(a, b) for a, b in zip(head(model), fresh, strict=True))


def test_auxiliary_heads_follow_and_it_is_said_once(path: Path) -> None:
    def build(count: int) -> FCNTorchvision:
        return FCNTorchvision(num_classes=count, backbone="resnet18", output_stride=32)

    source, model = build(2), build(3)
    report = load_weights(model, saved(path, source, ["dog", "background"]), PETS)
    assert report == "loaded 136/136, head: 2 of 3 classes by name (background, dog), new: cat"
    for layer in ("classifier", "aux_classifier"):
        ours, theirs = model.get_submodule(f"{layer}.4"), source.get_submodule(f"{layer}.4")
        assert torch.equal(ours.weight[[0, 2]], theirs.weight[[1, 0]])
        assert torch.equal(ours.bias[[0, 2]], theirs.bias[[1, 0]])


def test_upsampling_from_classes_to_classes_is_matched_at_both_ends(path: Path) -> None:
    def build(count: int) -> FCN:
        return FCN(num_classes=count, stride=32, fc_channels=8)

    source, model = build(4), build(3)
    nn.init.normal_(source.upscore.weight)
    fresh = model.upscore.weight.detach().clone()
    report = load_weights(model, saved(path, source, ["dog", "sky", "background", "car"]), PETS)
    assert report == "loaded 33/33, head: 2 of 3 classes by name (background, dog), new: cat"
    ours, theirs = model.upscore.weight, source.upscore.weight
    for mine, other in ((0, 2), (2, 0)):
        for mine2, other2 in ((0, 2), (2, 0)):
            assert torch.equal(ours[mine, mine2], theirs[other, other2])
    assert torch.equal(ours[1], fresh[1])
    assert torch.equal(ours[:, 1], fresh[:, 1])


def test_a_transposed_last_layer_counts_its_classes_in_the_second_dimension() -> None:
    layer = nn.ConvTranspose2d(5, 3, 2)
    assert class_dims(layer, layer.weight) == (1,)
    assert class_dims(layer, layer.bias) == (0,)
    theirs, ours = torch.arange(20.0).reshape(5, 2, 1, 2), torch.zeros(5, 3, 1, 2)
    moved = ClassMap(["cat", "background"], PETS).transfer(theirs, ours, (1,))
    assert torch.equal(moved[:, 0], theirs[:, 1])
    assert torch.equal(moved[:, 1], theirs[:, 0])
    assert moved[:, 2].abs().sum() == 0
    assert ours.abs().sum() == 0  # the fresh tensor itself is not written to


# --- without names on one side


@pytest.mark.parametrize("known", ["file", "data", "neither"])
def test_without_names_the_count_decides(known: str, path: Path) -> None:
    theirs = ["dog", "cat", "background"] if known == "file" else None
    ours = PETS if known == "data" else None
    source, model = unet(), unet()
    count = len(model.state_dict())
    assert load_weights(model, saved(path, source, theirs), ours) == f"loaded {count}/{count}"
    assert torch.equal(head(model)[0], head(source)[0])
    other = [*theirs, "sky"] if theirs else None
    report = load_weights(unet(), saved(path, unet(4), other), ours)
    assert report == f"loaded {count - 2}/{count}, head new (4 -> 3 classes)"


def test_names_that_are_not_as_many_as_rows_are_not_believed(path: Path) -> None:
    report = load_weights(unet(), saved(path, unet(4), PETS), PETS)
    assert report.endswith("head new (4 -> 3 classes)")


def test_another_networks_head_is_refused_with_names_too(path: Path) -> None:
    source = UNet(num_classes=3, base_channels=4, depth=1)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_weights(unet(), saved(path, source, ["dog", "cat", "background"]), PETS)


# --- torchvision's published names


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchvision's LR-ASPP for VOC's classes, in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    weights = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / Path(weights.url).name)
    return theirs, weights.meta["categories"]


def test_vocs_classes_are_torchvisions(published: Any) -> None:
    theirs, names = published
    ours = ["background", *names[1:]]
    model = LRASPP(num_classes=21)
    assert load_weights(model, "torchvision", ours) == "loaded 319/319"
    assert torch.equal(model.classifier.low_classifier.weight, theirs.classifier.low_classifier.weight)


def test_some_of_vocs_classes_by_name(published: Any) -> None:
    theirs, names = published
    model = LRASPP(num_classes=3)
    report = load_weights(model, "torchvision", PETS)
    assert report == "loaded 319/319, head: 3 of 3 classes by name (background, cat, dog)"
    rows = [0, names.index("cat"), names.index("dog")]
    for layer in ("low_classifier", "high_classifier"):
        ours = model.classifier.get_submodule(layer)
        assert torch.equal(ours.weight, theirs.classifier.get_submodule(layer).weight[rows])
        assert torch.equal(ours.bias, theirs.classifier.get_submodule(layer).bias[rows])
