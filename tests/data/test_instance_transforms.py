"""Objects move with their image: boxes stay tight, labels stay theirs, overlaps survive and nothing is invented."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.core.transforms_interface import DualTransform

from segtrain.data.color import ColorMatrix
from segtrain.data.elastic import ElasticGrid, IgnoreBorder, MirrorCrop
from segtrain.data.instances.transforms import InstanceTransform
from segtrain.data.transforms import Fit, RandomScaleCrop, SegmentationTransform
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose
from segtrain.instances import Instances, boxes_around

HEIGHT, WIDTH = 40, 56
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def objects(count: int, seed: int = 0) -> Instances:
    """Discs that overlap, some cut by the border; label, id and crowd of an object follow from one another."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        center = int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT))
        cv2.circle(mask, center, int(rng.integers(2, 14)), 1, -1)
    ids = torch.from_numpy(rng.permutation(count) + 100)
    return Instances.of(torch.from_numpy(masks), ids % 7 + 1, crowd=ids % 5 == 0, ids=ids)


def transform(*steps: Any) -> InstanceTransform:
    return InstanceTransform({f"step{i}": step for i, step in enumerate(steps)})


# Fresh ones for every test: steps keep what they drew last.
STEPS: dict[str, Any] = {
    "flip": lambda: [A.HorizontalFlip(p=0.5)],
    "scale and crop": lambda: [RandomScaleCrop(size=[24, 32], scale_range=[0.2, 2.0])],
    "scale, crop and flip": lambda: [RandomScaleCrop(size=32, scale_range=[0.5, 2.0]), A.HorizontalFlip(p=0.5)],
    "pad": lambda: [Fit(size=[64, 32], mode="pad")],
    "resize": lambda: [Fit(size=[30, 30])],
    "turns": lambda: [A.D4(p=1)],
    "rotate": lambda: [A.Rotate(limit=(20, 40), p=1)],
    "affine": lambda: [A.Affine(rotate=(20, 40), translate_percent=0.2, scale=(0.5, 1.5), p=1)],
    "perspective": lambda: [A.Perspective(scale=(0.1, 0.3), p=1)],
    "elastic": lambda: [A.ElasticTransform(alpha=80, sigma=6, p=1)],
    "elastic grid": lambda: [ElasticGrid(sigma=3.0, rotate_limit=45)],
    "mirror crop": lambda: [MirrorCrop(size=64, margin=4), IgnoreBorder(margin=4)],
    "one of two": lambda: [A.OneOf([A.PadIfNeeded(64, 64, p=1), A.RandomCrop(20, 20, p=1)], p=1)],
    "colors": lambda: [A.ColorJitter(p=1), A.GaussianBlur(p=1)],
    "erased patches": lambda: [A.CoarseDropout(p=1)],
}


@pytest.mark.parametrize("name", STEPS)
def test_what_is_left_of_objects_is_consistent(name: str) -> None:
    before, step = objects(8), transform(*STEPS[name]())
    rows = zip(before.ids, before.labels, before.crowd, strict=True)
    known = {int(one): (int(label), bool(crowd)) for one, label, crowd in rows}
    for index in range(8):
        image, after = step(IMAGE, before, (0, 0, index))
        assert after.size == image.shape[:2]
        assert after.masks.dtype == torch.uint8
        assert set(after.masks.unique().tolist()) <= {0, 1}
        assert torch.equal(after.boxes, boxes_around(after.masks))
        assert (after.boxes[:, 2:] - after.boxes[:, :2] >= 1).all(), "nothing thinner than a pixel is left"
        assert torch.equal(after.area, after.masks.flatten(1).sum(1).double())
        order = [before.ids.tolist().index(i) for i in after.ids.tolist()]
        assert order == sorted(order), "nothing is invented, doubled or exchanged"
        for one, label, crowd in zip(after.ids, after.labels, after.crowd, strict=True):
            assert (int(label), bool(crowd)) == known[int(one)]


@pytest.mark.parametrize("name", STEPS)
def test_each_mask_goes_the_way_that_a_class_of_its_pixels_would(name: str) -> None:
    before, together = objects(8), transform(*STEPS[name]())
    alone = {str(number): step for number, step in enumerate(STEPS[name]())}
    for index in range(5):
        image, after = together(IMAGE, before, (3, 1, index))
        union = before.masks.amax(0).numpy()
        same_image, target = SegmentationTransform(alone)(IMAGE, union, (3, 1, index))
        assert np.array_equal(image, same_image)
        left = after.masks.amax(0).numpy() if len(after) else np.zeros(after.size, np.uint8)
        assert np.array_equal(left == 1, target == 1), "the union of the masks moves as one"
        for one in range(len(before)):
            _, own = SegmentationTransform(alone)(IMAGE, before.masks[one].numpy(), (3, 1, index))
            found = after.masks[after.ids == before.ids[one]].numpy()
            assert len(found) == (own == 1).any(), "dropped if, and only if, nothing is left"
            assert not len(found) or np.array_equal(found[0] == 1, own == 1), "whatever lies on top of it"


@pytest.mark.parametrize("flip", [A.HorizontalFlip, A.VerticalFlip])
def test_two_flips_are_none(flip: Any) -> None:
    before = objects(8)
    once = transform(flip(p=1))(IMAGE, before, (0, 0, 0))
    twice = transform(flip(p=1), flip(p=1))(IMAGE, before, (0, 0, 0))
    assert np.array_equal(twice[0], IMAGE)
    for name in ("masks", "boxes", "labels", "crowd", "area", "ids"):
        assert torch.equal(getattr(twice[1], name), getattr(before, name)), name
    assert not torch.equal(once[1].boxes, before.boxes)


def test_a_flip_moves_boxes_by_whole_pixels() -> None:
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[0, 5:9, 0:3] = 1
    found = transform(A.HorizontalFlip(p=1))(IMAGE, Instances.of(masks, torch.tensor([1])), (0, 0, 0))[1]
    assert found.boxes.tolist() == [[WIDTH - 3, 5, WIDTH, 9]]


def test_a_sample_depends_on_its_seed_alone() -> None:
    step, before = transform(*STEPS["scale, crop and flip"](), ColorMatrix(p=0.5)), objects(8)
    image, after = step(IMAGE, before, (1, 2, 3))
    step(IMAGE, before, (9, 9, 9))
    again = step(IMAGE, before, (1, 2, 3))
    assert np.array_equal(image, again[0])
    assert torch.equal(after.masks, again[1].masks)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(image, step(IMAGE, before, other)[0])


@pytest.mark.parametrize("name", STEPS)
def test_images_without_objects_go_the_same_way(name: str) -> None:
    step = transform(*STEPS[name]())
    for index in range(3):
        image, found = step(IMAGE, Instances.none(HEIGHT, WIDTH), (0, 0, index))
        assert np.array_equal(image, step(IMAGE, objects(3), (0, 0, index))[0])
        assert (len(found), found.size) == (0, image.shape[:2])
        assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", STEPS)
def test_sixty_objects_are_as_good_as_six(name: str) -> None:
    few = objects(60).keep(torch.arange(6))
    image, found = transform(*STEPS[name]())(IMAGE, objects(60), (0, 0, 1))
    same, six = transform(*STEPS[name]())(IMAGE, few, (0, 0, 1))
    assert np.array_equal(image, same)
    chosen = found.keep(torch.isin(found.ids, few.ids))
    assert torch.equal(chosen.masks, six.masks)
    assert torch.equal(chosen.ids, six.ids)


def test_a_crop_beside_all_objects_leaves_an_image_without_any() -> None:
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[:, :4, :4] = 1
    step = transform(A.Crop(20, 20, 40, 40, p=1))
    image, found = step(IMAGE, Instances.of(masks, torch.tensor([1, 2])), (0, 0, 0))
    assert np.array_equal(image, IMAGE[20:40, 20:40])
    assert (len(found), found.size) == (0, (20, 20))


def test_what_padding_uncovers_belongs_to_no_object() -> None:
    whole = Instances.of(torch.ones(1, HEIGHT, WIDTH, dtype=torch.uint8), torch.tensor([1]))
    found = transform(Fit(size=[HEIGHT + 10, WIDTH + 10], mode="pad"))(IMAGE, whole, (0, 0, 0))[1]
    assert found.boxes.tolist() == [[5, 5, WIDTH + 5, HEIGHT + 5]]
    assert found.area.tolist() == [HEIGHT * WIDTH]


def test_colors_are_left_for_the_device_and_give_the_same_picture() -> None:
    steps: dict[str, Any] = {
        "crop": RandomScaleCrop(size=32, scale_range=[0.5, 2.0]),
        "flip": A.HorizontalFlip(p=0.5),
        "color": ColorMatrix(p=1.0),
    }
    union = objects(4).masks.amax(0).numpy()
    image, _, color = InstanceTransform(steps).unfinished(IMAGE, objects(4), (0, 0, 5))
    expected = SegmentationTransform(steps).unfinished(IMAGE, union, (0, 0, 5))
    assert color is not None
    assert expected[2] is not None
    assert np.array_equal(image, expected[0])
    assert np.array_equal(color, expected[2])
    finished = InstanceTransform(steps)(IMAGE, objects(4), (0, 0, 5))[0]
    assert np.array_equal(finished, SegmentationTransform(steps)(IMAGE, union, (0, 0, 5))[0])


def test_images_of_more_than_8_bits_keep_their_range() -> None:
    step = transform(*STEPS["scale, crop and flip"]())
    deep = step(IMAGE.astype(np.float32), objects(3), (0, 0, 1))[0]
    assert deep.dtype == np.float32
    assert np.abs(deep - step(IMAGE, objects(3), (0, 0, 1))[0]).max() <= 1


class _Shrinks(DualTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img[::2, ::2]

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return mask


class _Blends(_Shrinks):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return mask * 100


def test_steps_that_spoil_masks_are_named() -> None:
    with pytest.raises(DataError, match=r"augment.transforms.step1 gave masks values between"):
        transform(A.VerticalFlip(p=1), _Blends(p=1))(IMAGE, objects(2), (0, 0, 0))
    with pytest.raises(DataError, match=r"masks of 40, 56 of an image of 20, 28 \(height, width\)"):
        transform(_Shrinks(p=1))(IMAGE, objects(2), (0, 0, 0))
    with pytest.raises(ConfigError, match=r"augment.transforms.step0 is a int"):
        transform(3)


def test_the_largest_jitter_leaves_what_a_network_can_be_trained_on() -> None:
    """Scaled to a tenth, objects are single pixels: torchvision refuses boxes without an area, and means them."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    backbone: Any = torch.nn.Conv2d(3, 4, 3, stride=8, padding=1)
    backbone.out_channels = 4
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    model = MaskRCNN(backbone, 9, min_size=32, max_size=64, rpn_anchor_generator=anchors)
    step, thin = transform(RandomScaleCrop(size=32, scale_range=[0.1, 0.2])), 0
    for index in range(4):
        image, found = step(IMAGE, objects(8), (0, 0, index))
        thin += int((found.boxes[:, 2:] - found.boxes[:, :2] == 1).any())
        target = {"boxes": found.boxes, "labels": found.labels, "masks": found.masks}
        losses = model([torch.from_numpy(image).permute(2, 0, 1) / 255], [target])
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
    assert thin, "no object of one pixel was among them"


@pytest.mark.parametrize(("augment", "sizes"), [("instances", {(64, 64)}), ("lsj", {(48, 40)})])
def test_the_configs_build_a_training_split_of_objects(augment: str, sizes: set[tuple[int, int]]) -> None:
    overrides = ["data=shapes_instances", f"augment={augment}"]
    overrides += ["augment.crop_size=[48,40]"] * (augment == "lsj")  # the other leaves images as large as they are
    data = build_dataset(compose(overrides), "train")
    samples = [data.unfinished((epoch, 0)) for epoch in range(8)]
    assert {sample[0].shape[:2] for sample in samples} == sizes
    assert all(sample[1].size in sizes for sample in samples)
    assert any(not torch.equal(sample[1].boxes, samples[0][1].boxes) for sample in samples[1:])
    assert all(sample[3] is None for sample in samples) == (augment == "instances"), "only lsj changes colors"
