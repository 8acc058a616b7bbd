"""From images to objects: the answers of torchvision's own forward pass, in chunks and at other sizes too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_iou

from segtrain.errors import ConfigError
from segtrain.inference import instances
from segtrain.inference.instances import InstanceInference
from segtrain.instances import Detections
from segtrain.models.maskrcnn import MaskRCNN
from segtrain.models.unet import UNet

SIZES = [(64, 80), (97, 61)]


def network(min_size: int | list[int] = 64, max_size: int = 100) -> MaskRCNN:
    """Random weights, whose classes are drawn wide: detections have all kinds of scores."""
    torch.manual_seed(0)
    model = MaskRCNN(
        num_classes=4,
        backbone="resnet18",
        min_size=min_size,
        max_size=max_size,
        anchor_sizes=[4, 8, 16, 32, 64],
        rpn_post_nms_test=8,
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(12)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return network()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=draw) for size in SIZES]


@torch.inference_mode()
def detected(model: Any, images: list[Tensor], **options: Any) -> list[Detections]:
    inference = InstanceInference(**options)
    return inference.detect(model, inference.see(model, images))


@torch.inference_mode()
def torchvisions(model: Any, images: list[Tensor], **heads: float) -> list[dict[str, Tensor]]:
    """The network's own forward pass, as anyone would call it."""
    usual = {"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 100}
    for name, value in {**usual, **heads}.items():
        setattr(model.roi_heads, name, value)
    return model(images)  # type: ignore[no-any-return]


def assert_same(ours: list[Detections], theirs: list[dict[str, Tensor]], threshold: float = 0.5) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other["boxes"]) > 3
        assert torch.equal(one.boxes, other["boxes"])
        assert torch.equal(one.labels, other["labels"])
        assert torch.equal(one.scores, other["scores"])
        assert one.masks.dtype == torch.uint8
        assert torch.equal(one.masks, (other["masks"][:, 0] > threshold).to(torch.uint8))
        assert one.masks.any()
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)


def test_the_objects_are_those_of_torchvisions_own_forward_pass(model: MaskRCNN, images: list[Tensor]) -> None:
    ours = detected(model, images)
    assert [one.masks.shape[1:] for one in ours] == SIZES
    assert_same(ours, torchvisions(model, images))


@pytest.mark.parametrize("pixels", [1, 3 * 64 * 80])
def test_masks_pasted_a_few_at_a_time_are_the_same(
    model: MaskRCNN, images: list[Tensor], monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    from torchvision.models.detection import roi_heads

    pasted: list[int] = []
    paste = roi_heads.paste_masks_in_image

    def noted(masks: Tensor, boxes: Tensor, size: Any, *rest: Any) -> Tensor:
        pasted.append(len(masks) * size[0] * size[1])
        return paste(masks, boxes, size, *rest)

    whole = torchvisions(model, images)
    monkeypatch.setattr(instances, "MASK_PIXELS_AT_ONCE", pixels)
    monkeypatch.setattr(roi_heads, "paste_masks_in_image", noted)
    assert_same(detected(model, images), whole)
    assert len(pasted) > len(images)
    assert max(pasted) <= max(pixels, 97 * 61)  # one mask at least


def test_thresholds_mean_what_torchvisions_do(model: MaskRCNN, images: list[Tensor]) -> None:
    options = {"score_threshold": 0.3, "nms_threshold": 0.2, "max_detections": 6, "mask_threshold": 0.51}
    ours = detected(model, images, **options)
    theirs = torchvisions(model, images, score_thresh=0.3, nms_thresh=0.2, detections_per_img=6)
    assert_same(ours, theirs, 0.51)
    for one in ours:
        assert len(one) <= 6
        assert one.scores.min() > 0.3
        overlap = box_iou(one.boxes, one.boxes).fill_diagonal_(0)
        assert overlap[one.labels[:, None] == one.labels].max() <= 0.2
    assert_same(detected(model, images), torchvisions(model, images))  # the next inference has thresholds of its own


def test_other_sizes_are_those_of_a_network_that_was_built_with_them_and_are_put_back(images: list[Tensor]) -> None:
    model, larger = network([48, 64]), network(96, 120)
    larger.load_state_dict(model.state_dict())
    before = model.transform.min_size, model.transform.max_size
    assert_same(detected(model, images, min_size=96, max_size=120), torchvisions(larger, images))
    assert (model.transform.min_size, model.transform.max_size) == before == ([48, 64], 100)
    assert_same(detected(model, images), torchvisions(model, images))
    with pytest.raises(ValueError, match="images is expected to be a list of 3d tensors"):
        InstanceInference(min_size=96).see(model, [torch.zeros(1, 3, 8, 8)])
    assert (model.transform.min_size, model.transform.max_size) == before


def test_nothing_found_is_no_error(model: MaskRCNN, images: list[Tensor]) -> None:
    for one, size in zip(detected(model, images, score_threshold=1.0), SIZES, strict=True):
        assert (len(one), tuple(one.masks.shape), tuple(one.boxes.shape)) == (0, (0, *size), (0, 4))


def test_losses_leave_every_part_in_evaluation_mode_even_where_they_fail(images: list[Tensor]) -> None:
    model, inference = network(), InstanceInference()
    one = {"boxes": torch.tensor([[4.0, 4, 30, 40]]), "labels": torch.tensor([1])}
    masks = torch.zeros(1, 64, 80, dtype=torch.uint8)
    masks[:, 4:40, 4:30] = 1
    seen = inference.see(model, images[:1], [{**one, "masks": masks}])
    assert len(inference.losses(model, seen)) == 5
    assert not any(part.training for part in model.modules())
    seen.targets = [{**one, "labels": torch.tensor([1.5]), "masks": masks}]  # torchvision wants whole numbers
    with pytest.raises(TypeError, match="labels"):
        inference.losses(model, seen)
    assert not any(part.training for part in model.modules())


def test_networks_that_find_no_objects_or_normalize_themselves_are_refused(model: MaskRCNN) -> None:
    inference = InstanceInference()
    inference.check(model)
    with pytest.raises(ConfigError, match="UNet, which finds no objects") as error:
        inference.check(UNet(num_classes=3, base_channels=4, depth=2))
    assert "model=maskrcnn" in str(error.value.fix)
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(ConfigError, match="MaskRCNN normalizes images itself"):
        inference.check(theirs)
    for name, value in (("image_mean", [0.0, 0, 0]), ("image_std", [1.0, 1, 1])):
        with pytest.raises(ConfigError):
            inference.check(theirs)
        setattr(theirs.transform, name, value)
    inference.check(theirs)
