"""COCO's scores against its published figures, its own code run on files' content, and cases worked by hand."""

from __future__ import annotations

import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.instances import Detections, Instances
from segtrain.metrics.coco_ap import AveragePrecision

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coco_ap.json").read_text(encoding="utf-8"))
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
NAMES += ["ar_small", "ar_medium", "ar_large"]
CLASSES = ["background", "cat", "dog", "eel"]
SIZE = (118, 126)
Image = tuple[Detections, Instances]


def box_mask(box: list[int], size: tuple[int, int]) -> Tensor:
    x, y, width, height = box
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def corners(boxes: list[list[int]]) -> Tensor:
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return torch.cat([table[:, :2], table[:, :2] + table[:, 2:]], dim=1)


def objects(boxes: list[list[int]], labels: list[int], crowd: list[bool], size: tuple[int, int]) -> Instances:
    if not boxes:
        return Instances.none(*size)
    masks = torch.stack([box_mask(box, size) for box in boxes])
    return Instances.of(masks, torch.tensor(labels), boxes=corners(boxes), crowd=torch.tensor(crowd))


def findings(boxes: list[list[int]], labels: list[int], scores: list[float], size: tuple[int, int]) -> Detections:
    masks = torch.stack([box_mask(box, size) for box in boxes]) if boxes else torch.zeros(0, *size, dtype=torch.uint8)
    return Detections(corners(boxes), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores), masks)


def golden_images() -> dict[int, Image]:
    size = (GOLDEN["image_size"],) * 2
    images = {}
    for number in (1, 2):
        true = [row for row in GOLDEN["gt_image_cat_xywh_crowd"] if row[0] == number]
        found = [row for row in GOLDEN["dt_image_cat_xywh_score"] if row[0] == number]
        truth = objects([row[2] for row in true], [row[1] for row in true], [bool(row[3]) for row in true], size)
        images[number] = findings(*([row[k] for row in found] for k in (2, 1, 3)), size), truth
    return images


def scored(images: dict[int, Image], **options: Any) -> AveragePrecision:
    metric = AveragePrecision(**{"classes": CLASSES, **options})
    for index, (found, truth) in images.items():
        metric.update(found, truth, index)
    return metric


def random_mask(generator: np.random.Generator) -> Tensor:
    """A box, at times with holes, at times nothing."""
    top, left = (int(generator.integers(0, side - 4)) for side in SIZE)
    height, width = (int(generator.integers(1, side)) for side in SIZE)
    mask = box_mask([left, top, width, height], SIZE)
    if generator.random() < 0.3:
        mask &= torch.from_numpy(generator.integers(0, 2, SIZE).astype(np.uint8))
    return torch.zeros_like(mask) if generator.random() < 0.05 else mask


def random_boxes(masks: Tensor, generator: np.random.Generator) -> Tensor:
    """The masks' boxes, moved a little, as a network's are."""
    return Instances.of(masks, torch.ones(len(masks))).boxes + torch.from_numpy(
        generator.normal(0, 0.7, (len(masks), 1)).astype(np.float32)
    )


def random_image(generator: np.random.Generator) -> Image:
    """Objects with crowds and areas that no mask tells, found shifted, more than once, as another class, or not."""
    count = int(generator.choice([0, 1, 3, 6]))
    true_masks = torch.stack([random_mask(generator) for _ in range(max(count, 1))])[:count]
    labels = torch.from_numpy(generator.integers(1, 4, count))
    truth = Instances.of(
        true_masks,
        labels,
        boxes=random_boxes(true_masks, generator),
        crowd=torch.from_numpy(generator.random(count) < 0.2),
        area=torch.from_numpy(generator.choice([500.0, 1024.0, 4000.0, 9216.0, 12000.0], count)),
    )
    found, found_labels = [], []
    for _ in range(int(generator.choice([0, 2, 9]))):
        if count and generator.random() < 0.8:
            which = int(generator.integers(count))
            found.append(torch.roll(true_masks[which], tuple(generator.integers(-6, 7, 2).tolist()), dims=(0, 1)))
            found_labels.append(int(labels[which]) if generator.random() < 0.85 else int(generator.integers(1, 4)))
        else:
            found.append(random_mask(generator))
            found_labels.append(int(generator.integers(1, 4)))
    masks = torch.stack(found) if found else torch.zeros(0, *SIZE, dtype=torch.uint8)
    scores = torch.from_numpy(generator.choice(np.linspace(0.1, 0.9, 6), len(masks)).astype(np.float32))
    return Detections(random_boxes(masks, generator), torch.tensor(found_labels).long(), scores, masks), truth


def random_images(seed: int, count: int = 7) -> dict[int, Image]:
    generator = np.random.default_rng(seed)
    return {int(index): random_image(generator) for index in generator.permutation(40)[:count]}


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask))


def xywh(box: Tensor) -> list[float]:
    x0, y0, x1, y1 = box.double().tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def band(mask: np.ndarray, ratio: float) -> np.ndarray:
    """Pixels from which a square walk of that many steps leaves the mask or the image."""
    steps = max(1, round(ratio * math.hypot(*mask.shape)))
    outside = torch.from_numpy(1.0 - np.pad(mask, steps))[None]
    reached = torch.nn.functional.max_pool2d(outside, 2 * steps + 1, stride=1)[0].numpy() > 0
    return (mask.astype(bool) & reached).astype(np.uint8)


class BoundaryEval(COCOeval):
    """COCO's evaluation with the lesser of mask and band IoU, which is the masks' own beside a crowd."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        masks = super().computeIoU(imgId, catId)
        if not len(masks):
            return masks
        found = sorted(self._dts[imgId, catId], key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        true = self._gts[imgId, catId]
        bands = [[rle(band(coco.decode(one["segmentation"]), 0.02)) for one in side] for side in (found, true)]
        crowd = np.array([one["iscrowd"] for one in true], bool)
        return np.where(crowd, masks, np.minimum(masks, coco.iou(*bands, np.zeros(len(true)))))


def by_coco(images: dict[int, Image], kind: str, limits: list[int]) -> dict[str, np.ndarray]:
    """COCO's tables, by the way its users go: a dataset, a list of results, loadRes, evaluate, accumulate."""
    true, results = [], []
    for index, (found, truth) in images.items():
        for place in range(len(truth)):
            one = {"image_id": index, "category_id": int(truth.labels[place]), "iscrowd": int(truth.crowd[place])}
            one |= {"segmentation": rle(truth.masks[place].numpy()), "bbox": xywh(truth.boxes[place])}
            true.append({**one, "id": len(true) + 1, "area": float(truth.area[place])})
        for place in range(len(found)):
            one = {"image_id": index, "category_id": int(found.labels[place]), "score": float(found.scores[place])}
            shape = (
                {"bbox": xywh(found.boxes[place])}
                if kind == "box"
                else {"segmentation": rle(found.masks[place].numpy())}
            )
            results.append(one | shape)
    dataset = COCO()
    dataset.dataset = {
        "info": {},
        "images": [{"id": index, "height": SIZE[0], "width": SIZE[1]} for index in images],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES) if number],
        "annotations": true,
    }
    dataset.createIndex()
    judge = BoundaryEval if kind == "boundary" else COCOeval
    evaluation = judge(dataset, dataset.loadRes(results), "bbox" if kind == "box" else "segm")
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, NaN being NaN."""
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize(("kind", "golden"), [("box", "bbox"), ("mask", "segm")])
def test_the_published_example(kind: str, golden: str) -> None:
    metric = scored(golden_images(), classes=["background", "a", "b"])
    scores, expected = metric.compute(), GOLDEN[golden]
    wanted = [math.nan if value == -1 else value for value in expected["stats"]]
    assert [scores[f"{kind}_{name}"] for name in NAMES] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert list(scores[f"{kind}_ap_per_class"].values()) == pytest.approx(expected["ap_per_category"], abs=1e-12)
    assert metric.by_threshold(kind) == pytest.approx(expected["ap_per_iou_threshold"], abs=1e-12)
    assert scores["instances_per_class"] == {"a": 3, "b": 3}


@pytest.mark.parametrize("kind", ["box", "mask", "boundary"])
@pytest.mark.parametrize("limits", [[1, 10, 100], [1, 2, 3]])
def test_tables_are_those_of_cocos_own_code(kind: str, limits: list[int]) -> None:
    for seed in range(6):
        images = random_images(seed)
        metric = scored(images, max_detections=tuple(limits))
        wanted = by_coco(images, kind, limits)
        assert (wanted["precision"] > -1).any()
        np.testing.assert_array_equal(metric._verdict(kind).precision, wanted["precision"])
        np.testing.assert_array_equal(metric._verdict(kind).recall, wanted["recall"])


def test_scores_are_cocos_summary(capsys: pytest.CaptureFixture[str]) -> None:
    images = random_images(11, count=12)
    tables = by_coco(images, "mask", [1, 10, 100])
    judge = COCOeval(iouType="segm")
    judge.eval = tables
    judge.summarize()
    capsys.readouterr()
    scores = scored(images).compute()
    assert [scores[f"mask_{name}"] for name in NAMES] == pytest.approx(judge.stats.tolist(), abs=1e-12)
    assert capsys.readouterr().out == ""


def test_neither_order_nor_split_changes_a_score() -> None:
    images = random_images(3, count=12)
    whole = scored(images)
    ranks = [scored({index: images[index] for index in sorted(images)[rank::3]}) for rank in (2, 0, 1)]
    for other in ranks[1:]:
        ranks[0].merge(pickle.loads(pickle.dumps(other.state())))
    assert same(whole.compute(), ranks[0].compute())
    assert same(whole.compute(), scored(dict(sorted(images.items(), reverse=True))).compute())
    assert not same(whole.compute(), scored(dict(list(images.items())[:-4])).compute())


def test_an_image_counts_once() -> None:
    images = golden_images()
    metric = scored(images)
    with pytest.raises(ValueError, match="twice"):
        metric.update(*images[1], 1)
    with pytest.raises(ValueError, match="twice"):
        metric.merge(scored(images).state())


def test_scores_follow_what_came_after_them() -> None:
    images = golden_images()
    metric = scored({1: images[1]})
    before = metric.compute()["mask_ap"]
    metric.update(*images[2], 2)
    assert metric.compute()["mask_ap"] == scored(images).compute()["mask_ap"] != before


@pytest.mark.parametrize("images", [0, 2])
def test_without_objects_nothing_is_scored(images: int) -> None:
    size = (10, 12)
    empty = findings([], [], [], size), Instances.none(*size)
    metric = scored(dict.fromkeys(range(images), empty))
    scores = metric.compute()
    numbers = [value for value in scores.values() if isinstance(value, float)]
    assert len(numbers) == 36
    assert all(math.isnan(value) for value in numbers)
    assert metric.curves() == {}
    assert scores["instances_per_class"] == {"cat": 0, "dog": 0, "eel": 0}


def test_objects_that_nobody_found_score_zero() -> None:
    truth = objects([[0, 0, 40, 40]], [1], [False], (50, 50))
    scores = scored({0: (findings([], [], [], (50, 50)), truth)}).compute()
    assert scores["mask_ap"] == scores["boundary_ar100"] == scores["box_ap_medium"] == 0
    assert math.isnan(scores["mask_ap_small"])
    assert math.isnan(scores["mask_ap_per_class"]["dog"])


def test_detections_on_a_crowd_cost_nothing() -> None:
    size = (60, 60)
    truth = objects([[0, 0, 20, 20], [30, 0, 30, 60]], [1, 1], [False, True], size)
    on_crowd, beside = [[32, 5, 9, 9], [40, 30, 8, 8]], [[2, 40, 9, 9], [4, 30, 8, 8]]
    for others, expected in ((on_crowd, 1.0), (beside, 1 / 3)):
        found = findings([*others, [0, 0, 20, 20]], [1, 1, 1], [0.9, 0.8, 0.7], size)
        scores = scored({0: (found, truth)}).compute()
        assert [scores[f"{kind}_ap"] for kind in ("box", "mask", "boundary")] == pytest.approx([expected] * 3)
    assert scores["instances_per_class"]["cat"] == 1


def test_a_shift_costs_a_boundary_more_than_its_mask() -> None:
    size = (200, 200)
    truth, found = objects([[20, 20, 150, 150]], [1], [False], size), findings([[23, 20, 150, 150]], [1], [0.9], size)
    scores = scored({0: (found, truth)}).compute()
    assert scores["mask_ap"] == pytest.approx(1.0)  # IoU 147 / 153
    # Bands 6 px wide: 3456 px each, 3 columns off. Shared: 147 x 6 at top and bottom, 3 x 138 on either side.
    shared = 2 * 147 * 6 + 2 * 3 * 138
    assert scores["boundary_ap"] == pytest.approx(
        sum(shared / (2 * 3456 - shared) >= t / 100 for t in range(50, 100, 5)) / 10
    )
    assert 0 < scores["boundary_ap"] < 1
    assert "boundary_ap" not in scored({0: (found, truth)}, boundary=False).compute()


def test_curves_and_sizes_add_up_to_ap() -> None:
    metric = scored(random_images(5, count=12))
    scores, curves = metric.compute(), metric.curves()
    assert set(curves) == {name for name, ap in scores["mask_ap_per_class"].items() if not math.isnan(ap)}
    assert np.mean([np.mean(one["precision"]) for one in curves.values()]) == pytest.approx(scores["mask_ap50"])
    assert np.mean([np.mean(one["precision75"]) for one in curves.values()]) == pytest.approx(scores["mask_ap75"])
    assert all(one["recall"] == pytest.approx(np.arange(101) / 100) for one in curves.values())
    for kind in ("box", "mask", "boundary"):
        sizes = metric.by_size(kind)
        assert {name: one["all"] for name, one in sizes.items()} == scores[f"{kind}_ap_per_class"]
        assert np.nanmean([one["small"] for one in sizes.values()]) == pytest.approx(scores[f"{kind}_ap_small"])
        assert np.mean(metric.by_threshold(kind)) == pytest.approx(scores[f"{kind}_ap"])


def test_what_cannot_be_counted_is_refused() -> None:
    size = (20, 20)
    truth = objects([[0, 0, 9, 9]], [1], [False], size)
    with pytest.raises(ValueError, match="labels"):
        scored({0: (findings([[0, 0, 9, 9]], [4], [0.9], size), truth)})
    with pytest.raises(ValueError, match="labels"):
        scored({0: (findings([[0, 0, 9, 9]], [0], [0.9], size), truth)})
    with pytest.raises(ValueError, match="masks"):
        scored({0: (findings([[0, 0, 9, 9]], [1], [0.9], (20, 21)), truth)})
    with pytest.raises(ConfigError, match="ascending"):
        AveragePrecision(classes=CLASSES, max_detections=(10, 1))


def test_the_missing_package_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"segtrain\[instances\]"):
        AveragePrecision(classes=CLASSES)
