"""The instance task: losses are torchvision's, shares add up, and an evaluation leaves no trace."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segtrain.data.instances.shapes_instances import ShapesInstances
from segtrain.data.loader import EvalLoader
from segtrain.errors import ConfigError
from segtrain.evaluator import evaluate
from segtrain.inference.instances import InstanceInference
from segtrain.inference.whole import WholeImage
from segtrain.instances import Detections, InstanceBatch, Instances
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.detection import DetectionLoss
from segtrain.losses.pixel import CrossEntropy
from segtrain.models.maskrcnn import MaskRCNN
from segtrain.tasks.instance import InstanceTask
from segtrain.types import Record

pytest.importorskip("pycocotools")

CLASSES = ["background", "disc", "square", "triangle", "ring"]
CPU = torch.device("cpu")
TERMS = ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"]


class Mixed(ShapesInstances):
    """Four images of four sizes; the third has a crowd, the last no objects."""

    def load(self, record: Record) -> tuple[np.ndarray, Instances]:
        image, found = super().load(record)
        number = record.extra["index"]
        if number == 3:
            return image[:40], Instances.none(40, 64)
        rows = 64 - 8 * number
        masks = found.masks[:, :rows].contiguous()
        kept = masks.flatten(1).amax(1) > 0
        crowd = torch.zeros(len(found), dtype=torch.bool)
        crowd[0] = number == 2
        cut = Instances.of(masks[kept], found.labels[kept], crowd=crowd[kept], ids=found.ids[kept])
        return image[:rows], cut


def network(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = MaskRCNN(
        **{
            "num_classes": 5,
            "backbone": "resnet18",
            "norm": "frozen",
            "min_size": 64,
            "max_size": 80,
            "anchor_sizes": [4, 8, 16, 32, 64],
            "rpn_post_nms_train": 30,
            "rpn_post_nms_test": 6,
            "rpn_batch": 32,
            "box_batch": 16,
            **options,
        }
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(12)
    return model


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return network()


@pytest.fixture
def task() -> InstanceTask:
    return task_of()


def task_of(**options: Any) -> InstanceTask:
    parts: dict[str, Any] = {"loss": DetectionLoss(), "inference": InstanceInference(), **options}
    shown = {
        "classes": CLASSES,
        "palette": [[0, 0, 0]] * 5,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    return InstanceTask(**shown, **parts)


def dataset(kind: type[ShapesInstances] = Mixed) -> ShapesInstances:
    return kind(split="val", classes=CLASSES, size=64, val_images=4)


def whole_batch(source: ShapesInstances) -> InstanceBatch:
    samples = [source[number] for number in range(len(source))]
    return InstanceBatch(
        image=[torch.from_numpy(np.ascontiguousarray(image)) for image, _, _ in samples],
        target=[target for _, target, _ in samples],
        index=torch.arange(len(samples)),
        records=[record for _, _, record in samples],
    )


def scores(
    judged: InstanceTask, model: MaskRCNN, batch_size: int = 2, losses: bool = True, source: Any = None
) -> dict[str, Any]:
    loader = EvalLoader(source or dataset(), batch_size=batch_size, num_workers=0)
    meter = judged.meter(losses=losses)
    found = evaluate(model, loader, judged, CPU, precision=contextlib.nullcontext, meter=meter)
    found.pop("images_per_second")
    return found


def same(one: Any, other: Any) -> bool:
    """Equal in every bit, NaN like NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other or (one != one and other != other))


# --- losses of an evaluation


def test_an_evaluations_losses_are_the_means_of_torchvisions_own(task: InstanceTask, model: MaskRCNN) -> None:
    batch, sums = whole_batch(dataset()), dict.fromkeys(TERMS, 0.0)
    model.train()
    model.transform.eval()  # in training it draws a size, even of one
    for number, image in enumerate(task.inputs(batch)):
        kept = ~batch.target[number].crowd
        truth = {name: getattr(batch.target[number], name)[kept] for name in ("boxes", "labels", "masks")}
        torch.manual_seed(number)
        with torch.no_grad():
            found: dict[str, Tensor] = model([image], [truth])  # type: ignore[assignment]
        for name, value in found.items():
            sums[name.removeprefix("loss_")] += value.item() / len(batch)
    ours = scores(task, model)
    assert ours["losses"] == pytest.approx(sums, rel=1e-6)
    assert ours["loss"] == pytest.approx(sum(sums.values()), rel=1e-6)
    assert all(value > 0 for value in ours["losses"].values())


def test_an_evaluation_leaves_generator_modes_and_statistics_as_they_were(task: InstanceTask) -> None:
    model = network(norm="batch").eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    meter = task.meter()
    with torch.inference_mode():
        meter.update(model, whole_batch(dataset()))
    assert meter.scores()["loss"] > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    scores(task, model.train())
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_batches_and_repetition_change_no_bit(task: InstanceTask, model: MaskRCNN) -> None:
    torch.manual_seed(1)
    first = scores(task, model, 1)
    torch.rand(5)
    for batch_size in (1, 3, 4):
        assert same(scores(task, model, batch_size), first)
    plain = scores(task, model, 1, source=dataset(ShapesInstances))
    assert same(scores(task, model, 4, source=dataset(ShapesInstances)), plain)  # one size, one batch
    assert not same(plain, first)


def test_without_losses_none_is_computed_and_the_scores_are_the_same(
    model: MaskRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = scores(task_of(), model)

    def never(*arguments: Any) -> None:
        raise AssertionError("losses were computed")

    monkeypatch.setattr(InstanceInference, "losses", never)
    bare = scores(task_of(), model, losses=False)
    assert math.isnan(bare["loss"])
    assert "losses" not in bare
    assert same({**bare, "loss": usual["loss"], "losses": usual["losses"]}, usual)


def test_scores_have_their_names_and_the_monitors_are_among_them(model: MaskRCNN) -> None:
    found = scores(task_of(boundary_ap=True), model)
    sizes = [f"{kind}_{size}" for kind in ("ap", "ar") for size in ("small", "medium", "large")]
    names = ["ap", "ap50", "ap75", "ar1", "ar10", "ar100", *sizes]
    assert set(found) >= {f"{kind}_{name}" for kind in ("box", "mask", "boundary") for name in names}
    assert set(found) >= {*InstanceTask.monitors, *InstanceTask.per_class, *InstanceTask.columns.values()}
    assert list(found["losses"]) == TERMS
    assert found["images"] == 4
    assert "boundary_ap" not in scores(task_of(), model)
    table = task_of().table(scores(task_of(), model))
    assert [line.split()[0] for line in table] == ["class", *CLASSES[1:], "mask", "box"]


# --- losses of a step


class Firsts:
    """Takes the first boxes of each kind, where torchvision's sampler draws: as many of every image."""

    def __init__(self, sampler: Any) -> None:
        self.count, self.held = sampler.batch_size_per_image, sampler.positive_fraction

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks = []
        for labels in matched:
            held = torch.where(labels >= 1)[0][: int(self.count * self.held)]
            free = torch.where(labels == 0)[0][: self.count - len(held)]
            assert len(held) + len(free) == self.count, "the test's images must have boxes enough"
            masks.append(
                tuple(torch.zeros_like(labels, dtype=torch.uint8).index_fill_(0, one, 1) for one in (held, free))
            )
        return [held for held, _ in masks], [free for _, free in masks]


def crowded() -> InstanceBatch:
    """Four images of one size with five squares each: every image has as many boxes that hold an object."""
    draw = np.random.default_rng(0)
    images, targets = [], []
    for _ in range(4):
        image = draw.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
        for number, mask in enumerate(masks):
            top, left, side = int(draw.integers(0, 46)), 12 * number, int(draw.integers(10, 18))
            mask[top : top + side, left : left + side] = 1
            image[mask.numpy() > 0] = 40 * (number + 1)
        images.append(torch.from_numpy(image))
        targets.append(Instances.of(masks, torch.tensor([1, 2, 3, 4, 1])))
    return InstanceBatch(images, targets, torch.arange(4), [Record(str(number)) for number in range(4)])


def step(task: InstanceTask, model: MaskRCNN, batches: list[InstanceBatch]) -> tuple[dict[str, float], list[Tensor]]:
    """Losses and gradients of one optimizer step, as the trainer adds them up."""
    model.zero_grad(set_to_none=True)
    counts = torch.stack([task.counts(batch) for batch in batches]).sum(0)
    total: dict[str, float] = {}
    for batch in batches:
        losses = task.losses(model, batch, counts)
        losses["loss"].backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0.0) + value.item()
    return total, [one.grad.clone() for one in model.parameters() if one.grad is not None]


def test_a_step_is_the_same_whole_accumulated_or_in_pieces(task: InstanceTask) -> None:
    model = network().train()
    model.rpn.fg_bg_sampler = Firsts(model.rpn.fg_bg_sampler)
    model.roi_heads.fg_bg_sampler = Firsts(model.roi_heads.fg_bg_sampler)
    batch = crowded()
    losses, gradients = step(task, model, [batch])
    assert list(losses) == [*TERMS, "loss"]
    assert losses["loss"] == pytest.approx(sum(losses[name] for name in TERMS))
    for pieces in (2, 3, 4):
        cut = batch.parts(pieces)
        assert len(cut) == pieces
        again, summed = step(task, model, cut)
        assert again == pytest.approx(losses, rel=1e-4)
        for one, other in zip(summed, gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_what_crowds_hold_is_neither_object_nor_counted_as_one(task: InstanceTask) -> None:
    model = network().train()
    plain = crowded()
    crowds = crowded()
    for target in crowds.target:
        target.crowd[:2] = True
    without = crowded()
    without.target = [target.keep(torch.arange(2, 5)) for target in without.target]
    results = []
    for batch in (plain, crowds, without):
        torch.manual_seed(3)
        results.append(step(task, model, [batch]))
    assert results[1][0] == results[2][0] != results[0][0]
    assert all(torch.equal(one, other) for one, other in zip(results[1][1], results[2][1], strict=True))


def test_images_without_objects_teach_too_alone_and_among_others(task: InstanceTask) -> None:
    model = network().train()
    batch = crowded()
    for empty in ([0], [0, 1, 2, 3]):
        for number in empty:
            batch.target[number] = Instances.none(64, 64)
        torch.manual_seed(0)
        losses, gradients = step(task, model, [batch])
        assert all(math.isfinite(value) for value in losses.values())
        assert losses["classifier"] > 0
        assert losses["objectness"] > 0
        assert all(torch.isfinite(one).all() for one in gradients)
        # Every parameter has a gradient, if only zeros: ranks that wait for one another need it.
        assert len(gradients) == sum(one.requires_grad for one in model.parameters())
    assert losses["box_reg"] == losses["mask"] == losses["rpn_box_reg"] == 0


def test_half_precision_has_finite_losses_and_the_same_kind_of_objects(task: InstanceTask) -> None:
    model = network().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = step(task, model, [crowded()])
        assert all(math.isfinite(value) for value in losses.values())
        with torch.inference_mode():
            found = task.predict(model.eval(), crowded().image[0][None])[0]
    assert len(found) > 0
    assert (found.boxes.dtype, found.scores.dtype, found.masks.dtype) == (torch.float32, torch.float32, torch.uint8)


def test_color_changes_reach_the_network(task: InstanceTask) -> None:
    batch = crowded()
    batch.color = torch.eye(3, 4).repeat(4, 1, 1)
    batch.color[1] *= 0.5
    plain = crowded()
    ours, theirs = task.inputs(batch), task.inputs(plain)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)
    halved = task.normalize(plain.image[1].float()[None] * 0.5)[0]
    assert torch.allclose(ours[1], halved, atol=1e-5)


# --- parts that do not fit


def test_parts_of_another_kind_of_task_are_refused_by_name() -> None:
    pixels = SegmentationLoss(terms={"ce": CrossEntropy()})
    with pytest.raises(ConfigError, match="task=instance with loss=SegmentationLoss") as error:
        task_of(loss=pixels)
    assert error.value.fix == "loss=maskrcnn"
    with pytest.raises(ConfigError, match="task=instance with inference=WholeImage") as error:
        task_of(inference=WholeImage())
    assert error.value.fix == "inference=instances"


def test_pictures_show_what_is_sure_and_nothing_else(task: InstanceTask, model: MaskRCNN) -> None:
    image, target, _ = dataset()[0]
    found = Detections(target.boxes[:2], target.labels[:2], torch.tensor([0.9, 0.4]), target.masks[:2])
    pictures = []
    for shown in (found, found.keep(torch.tensor([0])), found.keep(torch.tensor([1])), found.keep(torch.arange(0))):
        task.predict = lambda *_, one=shown: [one]  # type: ignore[method-assign]
        pictures.append(task.panel(model, image, target, CPU))
    both, sure, unsure, none = pictures
    assert (both.dtype, both.ndim) == (np.uint8, 3)
    assert np.array_equal(both, sure)
    assert np.array_equal(unsure, none)
    assert not np.array_equal(both, none)
