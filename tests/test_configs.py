"""Every option of every group builds and learns something: what is in configs/ is what is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain.clashes import refuse_clashes
from segtrain.composition import groups
from segtrain.errors import ConfigError
from segtrain.experiment import build, build_model, compose
from segtrain.settings import Settings
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer

OPTIONS = groups()

# Small nets and images: each option is built as it is but for its width.
SMALL = [
    "data.batch_size=2",
    "data.num_workers=0",
    "data.scan=4",
    "data.limit=4",
    "data.size=33",
    "data.crop_size=33",
    "trainer.device=cpu",
    "trainer.max_steps=4",
    "trainer.epochs=2",
]
TINY = ["model=unet_small", "model.base_channels=4", "model.depth=2"]
OBJECTS = ["data=shapes_instances", "model.backbone=resnet18", "model.min_size=64", "model.max_size=64"]
OBJECTS += ["model.anchor_sizes=[4,8,16,32,64]", "model.rpn_post_nms_train=30", "model.rpn_post_nms_test=10"]
OBJECTS += ["model.rpn_batch=32", "model.box_batch=16"]
"""A small detector; what it needs besides, model=maskrcnn chooses."""
DETECTORS = {"maskrcnn", "maskrcnn_v2"}
OF_OBJECTS = {"augment": {"instances", "lsj"}, "loss": {"maskrcnn"}, "inference": {"instances"}}
"""Options that are for task=instance alone."""
OTHER_AUGMENTS = sorted(OF_OBJECTS["augment"] - {"instances"})
LIGHTER = {
    "unet": ["model.base_channels=4"],
    "unet_small": ["model.base_channels=4"],
    "unet_valid": ["model.base_channels=4"],
    **{
        name: ["model.fc_channels=16", "model.padding=modern"] for name in ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")
    },
    "deeplabv1": ["model.fc_channels=16"],
    "deeplabv2": ["model.backbone=resnet50"],
    "pspnet": ["model.backbone=resnet18", "model.output_stride=16"],
    "deeplabv3": ["model.backbone=resnet18", "model.multi_grid=[1,2]"],
    "deeplabv3_cascade": ["model.output_stride=32"],
    "deeplabv3_torchvision": ["model.backbone=resnet18", "model.output_stride=16"],
    "deeplabv3plus": ["model.backbone=mobilenet_v2"],
    "fcn_torchvision": ["model.backbone=resnet18", "model.output_stride=16"],
}

UNTRAINED = {"otsu", "double_peak", "morphology", "watershed", "slic_kmeans"}
"""Rules without parameters: tests/models/test_classical.py has them."""


def trainer_of(tmp_path: Path, *overrides: str) -> Trainer:
    return build(compose([*SMALL, *overrides]), folder=tmp_path, tracker=Tracker())


def of_pixels(group: str) -> list[str]:
    """The options of a group that are for one class per pixel."""
    return sorted({*OPTIONS[group]} - OF_OBJECTS[group])


def learns(trainer: Trainer, steps: int = 3) -> None:
    """Updates on one batch: the learned tensors move, the loss stays finite and, over several, falls."""
    learned = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in learned.items()}
    batches = next(iter(trainer.train_loader.steps(0)))
    losses = []
    trainer.start_training()
    for _ in range(steps):
        trainer.train_step(batches)
        losses.append(trainer.sums.take("window")["loss"])
        trainer.course.step += 1
    assert all(loss == loss and abs(loss) != float("inf") for loss in losses), losses
    assert steps == 1 or min(losses[1:]) < losses[0], losses
    changed = [name for name, value in learned.items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.8 * len(before), sorted(set(before) - set(changed))


@pytest.mark.parametrize("option", sorted({*OPTIONS["model"]} - UNTRAINED - DETECTORS))
def test_models(tmp_path: Path, option: str) -> None:
    learns(
        trainer_of(tmp_path, f"model={option}", *LIGHTER.get(option, []), "optimizer.lr=1e-3", "scheduler=constant"), 4
    )


@pytest.mark.parametrize(
    ("option", "augment"),
    [*((one, "instances") for one in sorted(DETECTORS)), *(("maskrcnn", one) for one in OTHER_AUGMENTS)],
)
def test_detectors(tmp_path: Path, option: str, augment: str) -> None:
    words = [f"model={option}", *OBJECTS, f"augment={augment}", "optimizer.lr=1e-3", "scheduler=constant"]
    trainer = trainer_of(tmp_path, *words)
    learns(trainer, 4)
    assert trainer.task.loss.weights == dict.fromkeys(
        ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask"), 1.0
    )


@pytest.mark.parametrize("option", of_pixels("loss"))
def test_losses(tmp_path: Path, option: str) -> None:
    learns(trainer_of(tmp_path, f"loss={option}", *TINY, "scheduler=constant", "optimizer.lr=1e-2"))


@pytest.mark.parametrize("option", OPTIONS["optimizer"])
def test_optimizers(tmp_path: Path, option: str) -> None:
    trainer = trainer_of(tmp_path, f"optimizer={option}", *TINY, "scheduler=constant")
    assert type(trainer.optimizer).__name__.lower() == option
    learns(trainer, 4)


@pytest.mark.parametrize("option", OPTIONS["scheduler"])
def test_schedulers(tmp_path: Path, option: str) -> None:
    trainer = trainer_of(
        tmp_path, f"scheduler={option}", *TINY, "optimizer.lr=0.01", "trainer.epochs=20", "trainer.max_steps=40"
    )
    rates = []
    for _ in range(trainer.course.total_steps):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.scheduler.step()
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert all(0 <= rate <= 0.01 + 1e-12 for rate in rates)
    assert (len(set(rates)) == 1) == (option == "constant")


@pytest.mark.parametrize("option", of_pixels("augment"))
def test_augmentations(tmp_path: Path, option: str) -> None:
    trainer = trainer_of(tmp_path, *TINY, f"augment={option}", "augment.crop_size=[24,40]")
    batch = next(iter(trainer.train_loader.steps(0)))[0]
    assert batch.image.shape == (2, 24, 40, 3)
    assert batch.target.shape == (2, 24, 40)
    assert set(batch.target.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    learns(trainer)


@pytest.mark.parametrize("option", of_pixels("inference"))
def test_inference_protocols(tmp_path: Path, option: str) -> None:
    # As they are: the window follows data.crop_size and the stride the window. Tiles are for a network without padding.
    model = [f"model={'unet_valid' if option == 'tile' else 'unet_small'}", *TINY[1:]]
    scores = trainer_of(tmp_path, *model, f"inference={option}").validate()
    assert sum(map(sum, scores["confusion"])) > 0
    assert 0 <= scores["miou"] <= 1


@pytest.mark.parametrize("model", [TINY, ["model=maskrcnn", *OBJECTS]], ids=["pixels", "objects"])
@pytest.mark.parametrize("option", OPTIONS["debug"])
def test_debug_bundles(tmp_path: Path, option: str, model: list[str]) -> None:
    trainer = build(compose([f"debug={option}", *model, "data.num_workers=0"]), folder=tmp_path, tracker=Tracker())
    assert trainer.train_loader.length == (8 if option == "fast" else 4)
    if option == "fast":
        assert trainer.course.total_steps == 3
    else:
        assert trainer.val_loader.dataset.split == "train"
        assert len(trainer.val_loader.dataset) == 4


@pytest.mark.parametrize("option", OPTIONS["experiment"])
def test_experiments(tmp_path: Path, option: str) -> None:
    """On `shapes`, from random weights: the recipe's model, loss, optimizer, schedule and augmentation fit together."""
    cfg = compose([f"experiment={option}"])
    refuse_clashes(Settings(cfg))
    if option.startswith("maskrcnn"):
        small = ["model.weights=none", *OBJECTS, "model.norm=batch", "model.trainable_layers=5"]
        learns(trainer_of(tmp_path, f"experiment={option}", *small), 1)
        return
    if cfg.model.weights != "none":
        assert cfg.model.weights == "imagenet"
    swapped = [f"experiment={option}", "data=shapes", "model.weights=none"]
    swapped += ["model.base_channels=4"] if "base_channels" in cfg.model else []
    swapped += ["model.freeze_bn=false"]  # made for weights whose statistics are learned
    if option == "unet_cells":
        # The smallest sizes have no pixel inside the margin; and shapes are of five classes, in color.
        swapped += ["data.size=220", "data.crop_size=220", "data.channels=3", "model.in_channels=3"]
        swapped += ["data.classes=[background,disc,square,triangle,ring]"]
    if option.startswith("fcn"):  # its scores start at zero: what is below them learns from the second step on
        learns(trainer_of(tmp_path, *swapped, *LIGHTER["fcn8s"], "optimizer.lr=0.1"), 3)
        return
    learns(trainer_of(tmp_path, *swapped), 1)


CLASSES = {"shapes": 5, "voc": 21, "cityscapes": 19, "pet": 3, "portrait": 2, "camvid": 11}
LATER = {"voc_aug": 21, "folder": 2, "coco_semantic": 81, "coco_voc": 21, "pennfudan_semantic": 2, "shapes_scenes": 7}
"""One model of each kind shows that these reach the network; all models were built for all numbers of classes above."""
OF_DETECTORS = {"coco": 81, "pennfudan": 2, "voc_instances": 21, "cityscapes_instances": 9, "folder_instances": 3}
OF_DETECTORS |= {"shapes_instances": 5, "shapes_objects": 5}
MERGED = {"coco_panoptic", "cityscapes_panoptic", "shapes_panoptic"}
"""For two networks, neither of which has these classes."""
NETWORKS = sorted({*OPTIONS["model"]} - UNTRAINED - DETECTORS)
PAIRS = [(data, model) for data in CLASSES for model in NETWORKS]
PAIRS += [(data, model) for data in LATER for model in ("unet_small", "deeplabv3plus")]


def without_files(data: str, model: str) -> list[str]:
    words = [f"data={data}", f"model={model}"]
    words += ["data.classes=[sound,crack]"] if data == "folder" else []
    words += ["data.classes=[background,nut,bolt]"] if data == "folder_instances" else []
    return words if data.startswith("shapes") else [*words, "data.root=/nowhere"]


def test_every_dataset_is_named_here() -> None:
    assert {*CLASSES, *LATER, *OF_DETECTORS, *MERGED} == set(OPTIONS["data"])


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_every_model_builds_for_every_dataset_with_no_data_on_disk(data: str, model: str) -> None:
    with torch.device("meta"):  # no memory and no time for weights
        network = build_model(compose(without_files(data, model))).eval()
        outputs: Any = network(torch.zeros(1, 3, 64, 96))
    assert outputs["out"].shape == (1, {**CLASSES, **LATER}[data], 64, 96)


@pytest.mark.parametrize("data", OF_DETECTORS)
@pytest.mark.parametrize("model", sorted(DETECTORS))
def test_every_detector_builds_for_every_dataset_of_objects_with_no_data_on_disk(data: str, model: str) -> None:
    cfg = compose(without_files(data, model))
    refuse_clashes(Settings(cfg))
    with torch.device("meta"):
        network: Any = build_model(cfg)
    heads = network.roi_heads
    found = (heads.box_predictor.cls_score.out_features, heads.mask_predictor.mask_fcn_logits.out_channels)
    assert found == (OF_DETECTORS[data],) * 2


@pytest.mark.parametrize("data", sorted(MERGED))
@pytest.mark.parametrize(("model", "task"), [("unet_small", "semantic"), ("maskrcnn", "instance")])
def test_no_model_is_trained_on_segments(data: str, model: str, task: str) -> None:
    with pytest.raises(ConfigError, match=f"task={task} with data of the kind panoptic"):
        refuse_clashes(Settings(compose([f"data={data}", f"model={model}"])))


def test_other_targets_of_pet_are_other_class_counts() -> None:
    for target, count in (("trimap", 3), ("foreground", 2), ("breed", 38)):
        cfg = compose(["data=pet", f"data.target={target}"])
        refuse_clashes(Settings(cfg))
        with torch.device("meta"):
            assert build_model(cfg).eval()(torch.zeros(1, 3, 32, 32))["out"].shape[1] == count


@pytest.mark.parametrize("option", sorted({*OPTIONS["model"]} - UNTRAINED))
def test_no_model_fetches_weights_by_default(option: str) -> None:
    node = compose([f"model={option}"]).model
    assert node.weights == "none"
    assert node.get("weights_backbone") is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["augment=basic"], "augment.margin is not there"),
        (["augment=elastic"], "augment.margin is 0"),
        (["augment=elastic", "augment.margin=44"], "augment.margin is 44"),
    ],
)
def test_a_crop_that_is_its_own_surroundings_needs_the_networks_margin(
    tmp_path: Path, words: list[str], found: str
) -> None:
    model = ["model=unet_valid", "model.base_channels=4", "model.depth=2", "model.context=crop"]
    with pytest.raises(ConfigError, match=found) as error:
        trainer_of(tmp_path, *model, "data.crop_size=120", "data.size=120", *words)
    assert "augment=elastic augment.margin=20" in str(error.value)


def test_frozen_statistics_that_nothing_learned_are_named(tmp_path: Path) -> None:
    class Said(Tracker):
        lines: list[str] = []  # noqa: RUF012 - one tracker

        def say(self, text: str = "") -> None:
            self.lines.append(text)

    tracker = Said()
    build(compose([*SMALL, *TINY, "model.freeze_bn=true"]), folder=tmp_path, tracker=tracker)
    assert any("model.freeze_bn=true keeps statistics that nothing has learned" in line for line in tracker.lines)
