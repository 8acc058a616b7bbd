"""Mask R-CNN: torchvision's network part by part, under names that a config can set."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torchvision.models.detection import mask_rcnn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segtrain import signatures
from segtrain.errors import ConfigError
from segtrain.models import maskrcnn
from segtrain.models.maskrcnn import MaskRCNN
from segtrain.models.summary import measure

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}

# Shapes outside the ResNet of torchvision's maskrcnn_resnet50_fpn for 91 classes, recorded from torchvision 0.25.
SHAPES = {
    "backbone.fpn.inner_blocks.0.0": (256, 256, 1, 1),
    "backbone.fpn.inner_blocks.1.0": (256, 512, 1, 1),
    "backbone.fpn.inner_blocks.2.0": (256, 1024, 1, 1),
    "backbone.fpn.inner_blocks.3.0": (256, 2048, 1, 1),
    **{f"backbone.fpn.layer_blocks.{level}.0": (256, 256, 3, 3) for level in range(4)},
    "rpn.head.conv.0.0": (256, 256, 3, 3),
    "rpn.head.cls_logits": (3, 256, 1, 1),
    "rpn.head.bbox_pred": (12, 256, 1, 1),
    "roi_heads.box_head.fc6": (1024, 12544),
    "roi_heads.box_head.fc7": (1024, 1024),
    "roi_heads.box_predictor.cls_score": (91, 1024),
    "roi_heads.box_predictor.bbox_pred": (364, 1024),
    **{f"roi_heads.mask_head.{layer}.0": (256, 256, 3, 3) for layer in range(4)},
    "roi_heads.mask_predictor.conv5_mask": (256, 256, 2, 2),
    "roi_heads.mask_predictor.mask_fcn_logits": (91, 256, 1, 1),
}
# Anchors around 0 for ratios 0.5, 1 and 2: the same area, rounded.
CELL_ANCHORS = {
    32: [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]],
    64: [[-45, -23, 45, 23], [-32, -32, 32, 32], [-23, -45, 23, 45]],
    128: [[-91, -45, 91, 45], [-64, -64, 64, 64], [-45, -91, 45, 91]],
    256: [[-181, -91, 181, 91], [-128, -128, 128, 128], [-91, -181, 91, 181]],
    512: [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]],
}
# Level 2 to 5 by the side of a square box: floor(4 + log2(side / 224)).
LEVELS = {20: 2, 56: 2, 111: 2, 112: 3, 223: 3, 224: 4, 447: 4, 448: 5, 900: 5}


def small(num_classes: int = 3, **options: Any) -> MaskRCNN:
    settings: dict[str, Any] = {"backbone": "resnet18", "min_size": 64, "rpn_post_nms_test": 20, **options}
    return MaskRCNN(num_classes=num_classes, **settings)


def on_meta(build: Callable[..., nn.Module], **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(**options)


def images() -> list[Tensor]:
    """Two of different sizes, in [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 80, generator=draw), torch.rand(3, 72, 64, generator=draw)]


def normalized(raw: list[Tensor]) -> list[Tensor]:
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    return [(image - mean) / std for image in raw]


def targets() -> list[dict[str, Tensor]]:
    """Two objects in the first image, one in the second."""
    boxes = [torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 78.0, 60.0]]), torch.tensor([[8.0, 8.0, 56.0, 64.0]])]
    made = []
    for image, found in zip(images(), boxes, strict=True):
        masks = torch.zeros(len(found), *image.shape[-2:], dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, found.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        made.append({"boxes": found, "labels": torch.arange(1, len(found) + 1), "masks": masks})
    return made


# --- structure


def test_the_page_holds() -> None:
    outcome = doctest.testmod(maskrcnn)
    assert outcome.failed == 0
    assert outcome.attempted >= 6


@pytest.mark.parametrize(
    ("options", "parameters", "tensors"),
    [
        ({}, 44_454_513, 360),
        ({"norm": "frozen"}, 44_401_393, 307),
        ({"version": "v2"}, 46_359_409, 432),
    ],
)
def test_parameters(options: dict[str, Any], parameters: int, tensors: int) -> None:
    model = on_meta(MaskRCNN, num_classes=91, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


def test_keys_and_shapes_are_the_recorded_ones() -> None:
    state = on_meta(MaskRCNN, num_classes=91).state_dict()
    outside = {key: tuple(value.shape) for key, value in state.items() if not key.startswith("backbone.body.")}
    biases = {
        f"{layer}.bias": (shape[1] if layer.endswith("conv5_mask") else shape[0],) for layer, shape in SHAPES.items()
    }
    assert outside == {**{f"{layer}.weight": shape for layer, shape in SHAPES.items()}, **biases}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_keys_and_shapes_are_torchvisions(version: str) -> None:
    ours = on_meta(MaskRCNN, num_classes=4, version=version)
    form = ours.torchvision_form
    theirs = on_meta(torchvision.models.get_model, name=form, weights=None, weights_backbone=None, num_classes=4)
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
        (key, value.shape) for key, value in theirs.state_dict().items()
    ]


def test_defaults_and_every_number_reach_their_places() -> None:
    def places(model: mask_rcnn.MaskRCNN) -> dict[str, Any]:
        rpn, heads, size = model.rpn, model.roi_heads, model.transform
        return {
            "rpn": (rpn.nms_thresh, rpn.min_size, rpn.score_thresh, rpn._pre_nms_top_n, rpn._post_nms_top_n),
            "rpn_match": (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold),
            "rpn_sample": vars(rpn.fg_bg_sampler),
            "match": (heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold),
            "sample": vars(heads.fg_bg_sampler),
            "detections": (heads.score_thresh, heads.nms_thresh, heads.detections_per_img, heads.box_coder.weights),
            "pool": [
                (pool.output_size, pool.sampling_ratio, pool.featmap_names)
                for pool in (heads.box_roi_pool, heads.mask_roi_pool)
            ],
            "size": (tuple(size.min_size), size.max_size, size.size_divisible),
            "anchors": (model.rpn.anchor_generator.sizes, model.rpn.anchor_generator.aspect_ratios),
        }

    options: dict[str, Any] = {"name": "maskrcnn_resnet50_fpn", "weights": None, "weights_backbone": None}
    theirs = on_meta(torchvision.models.get_model, **options, num_classes=4)
    assert places(on_meta(MaskRCNN, num_classes=4)) == places(theirs)
    changed = {"rpn_fg_iou": 0.61, "rpn_bg_iou": 0.21, "box_fg_iou": 0.62, "box_bg_iou": 0.22}
    thresholds = {f"{key}_thresh": value for key, value in changed.items()}
    theirs = on_meta(
        torchvision.models.get_model,
        **options,
        num_classes=4,
        min_size=[100, 200],
        max_size=300,
        rpn_nms_thresh=0.63,
        **thresholds,
        rpn_pre_nms_top_n_train=11,
        rpn_pre_nms_top_n_test=12,
        rpn_post_nms_top_n_train=13,
        rpn_post_nms_top_n_test=14,
        rpn_batch_size_per_image=15,
        box_batch_size_per_image=16,
        rpn_positive_fraction=0.64,
        box_positive_fraction=0.65,
    )
    ours = on_meta(
        MaskRCNN,
        num_classes=4,
        min_size=[100, 200],
        max_size=300,
        rpn_nms=0.63,
        **changed,
        rpn_pre_nms_train=11,
        rpn_pre_nms_test=12,
        rpn_post_nms_train=13,
        rpn_post_nms_test=14,
        rpn_batch=15,
        box_batch=16,
        rpn_positive_fraction=0.64,
        box_positive_fraction=0.65,
    )
    assert places(ours) == places(theirs)


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_are_torchvisions(layers: int) -> None:
    theirs = on_meta(
        resnet_fpn_backbone, backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=layers
    )
    ours = on_meta(small, trainable_layers=layers).backbone
    assert [key for key, p in ours.named_parameters() if p.requires_grad] == [
        key for key, p in theirs.named_parameters() if p.requires_grad
    ]


def test_cell_anchors() -> None:
    levels = small().rpn.anchor_generator.cell_anchors
    assert [level.tolist() for level in levels] == list(CELL_ANCHORS.values())


def test_anchors_of_several_sizes_on_a_level() -> None:
    model = small(anchor_sizes=[[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]], aspect_ratios=[1.0])
    assert model.rpn.anchor_generator.cell_anchors[0].tolist() == [[-4, -4, 4, 4], [-6, -6, 6, 6]]
    assert model.rpn.head.cls_logits.out_channels == 2


def test_boxes_go_to_the_level_of_their_size() -> None:
    model = small().eval()
    pool = model.roi_heads.box_roi_pool
    with torch.inference_mode():
        model([torch.zeros(3, 64, 64)])  # the first image tells the strides
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in LEVELS])
    assert (pool.map_levels([boxes]) + 2).tolist() == list(LEVELS.values())


# --- the same numbers as torchvision's


def pair(version: str) -> tuple[MaskRCNN, nn.Module]:
    """Ours and torchvision's with the same weights; only theirs normalizes images."""
    numbers = {"min_size": 64, "rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
    torch.manual_seed(0)
    ours = small(version=version, backbone="resnet18" if version == "v1" else "resnet50", rpn_post_nms_train=20)
    if version == "v1":
        body = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        theirs: nn.Module = mask_rcnn.MaskRCNN(body, 3, image_mean=MEAN, image_std=STD, **numbers)
    else:
        theirs = mask_rcnn.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3, **numbers)
    for layer in ours.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        ours.train()(normalized(images()), targets())  # statistics that keep activations in range
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.roi_heads.score_thresh = 0.01  # nothing has learned to be sure
    return ours, theirs


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_detections_and_losses_are_torchvisions(version: str) -> None:
    ours, theirs = pair(version)
    with torch.inference_mode():
        mine, reference = ours.eval()(normalized(images())), theirs.eval()(images())
    assert sum(len(found["boxes"]) for found in reference) > 4
    for one, other in zip(mine, reference, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        for key in ("boxes", "scores", "masks"):
            assert torch.allclose(one[key], other[key], atol=1e-4), key
    torch.manual_seed(1)  # both draw their samples
    expected = theirs.train()(images(), targets())
    torch.manual_seed(1)
    losses = ours.train()(normalized(images()), targets())
    assert losses.keys() == LOSSES
    assert {key: pytest.approx(value.item(), rel=1e-4) for key, value in expected.items()} == {
        key: value.item() for key, value in losses.items()
    }


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_training_reaches_every_parameter_that_is_trained(version: str) -> None:
    torch.manual_seed(0)
    model = small(version=version, norm="frozen", trainable_layers=3, rpn_post_nms_train=20).train()
    sum(model(normalized(images()), targets()).values()).backward()
    learned = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, gradient in learned.items() if gradient is None or not gradient.isfinite().all()] == []
    assert "backbone.body.layer2.0.conv1.weight" in learned
    assert "backbone.body.layer1.0.conv1.weight" not in learned


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_image_without_objects_teaches_too(version: str) -> None:
    torch.manual_seed(0)
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 80, dtype=torch.uint8),
    }
    model = small(version=version, rpn_post_nms_train=20).train()
    masks = {key: value.clone() for key, value in model.roi_heads.mask_head.state_dict().items() if "running" in key}
    losses = model(normalized(images())[:1], [nothing])
    assert losses.keys() == LOSSES
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_objectness"] > 0
    assert losses["loss_mask"] == 0
    # No region reached the mask head: its normalization has learned nothing from none.
    assert all(torch.equal(model.roi_heads.mask_head.state_dict()[key], value) for key, value in masks.items())


def test_several_sizes_are_drawn_in_training_and_the_last_is_evaluated() -> None:
    model = small(min_size=[32, 64], max_size=96)
    image = [torch.zeros(3, 40, 50)]
    assert {model.train().transform(image)[0].image_sizes[0] for _ in range(40)} == {(32, 40), (64, 80)}
    assert {model.eval().transform(image)[0].image_sizes[0] for _ in range(10)} == {(64, 80)}
    assert model.transform([torch.zeros(3, 40, 80)])[0].image_sizes == [(48, 96)]  # the longer side comes first


# --- what a config may ask


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anchor_sizes": [32, 64, 128, 256, [512, 724]]}, r"different numbers of anchors"),
        ({"rpn_bg_iou": 0.8}, r"rpn_bg_iou is above rpn_fg_iou"),
        ({"box_fg_iou": 0.4}, r"box_bg_iou is above box_fg_iou"),
    ],
)
def test_numbers_that_cannot_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        on_meta(small, **options)


@pytest.mark.parametrize(
    "option",
    [
        {"in_channels": 1},
        {"backbone": "vgg16"},
        {"trainable_layers": 6},
        {"min_size": []},
        {"anchor_sizes": [32, 64]},
        {"anchor_sizes": [32, 64, 128, 256, []]},
        {"aspect_ratios": []},
        {"rpn_nms": 1.5},
        {"box_batch": 0},
        {"box_score_thresh": 0.1},
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_built(option: dict[str, Any]) -> None:
    signatures.check({"num_classes": 3}, MaskRCNN, "model")
    with pytest.raises(ConfigError, match=r"model\." + next(iter(option))):
        signatures.check({"num_classes": 3, **option}, MaskRCNN, "model")


def test_the_files_name_every_argument_with_its_default() -> None:
    own, shared = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("maskrcnn", "_model"))
    parameters = inspect.signature(MaskRCNN).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    of_the_run = {"_target_", "weights", "freeze_bn", "normalize", "num_classes", "in_channels", "defaults"}
    assert {key: value for key, value in own.items() if key not in of_the_run} == {
        key: value for key, value in defaults.items() if key != "in_channels"
    }
    assert {key: value for key, value in shared.items() if key not in own}.keys() >= {"num_classes", "in_channels"}
    second = yaml.safe_load((CONFIGS / "maskrcnn_v2.yaml").read_text())
    assert second == {"defaults": ["maskrcnn", "_self_"], "version": "v2"}


# --- what it costs


@pytest.mark.parametrize(
    ("version", "size", "detections", "gmacs"),
    [
        # Recorded part by part: backbone, RPN head, box head on 1000 regions, mask head on 100.
        ("v1", 512, 100, (72_402_075_648 + 25_912_246_272 + 28_719_104_000 + 106_413_260_800) / 2e9),
        ("v2", 512, 100, (72_402_075_648 + 51_656_884_224 + 257_832_960_000 + 106_413_260_800) / 2e9),
        # What torchvision publishes, counted on an image that had no detections in v1, and 100 in v2.
        ("v1", 800, 0, 134.38),
        ("v2", 800, 100, 333.577),
    ],
)
def test_multiplications(version: str, size: int, detections: int, gmacs: float) -> None:
    model = on_meta(MaskRCNN, num_classes=91, version=version, min_size=size)
    model.roi_heads.detections_per_img = detections
    cost = measure(model, (size, size), 3)
    assert cost.gmacs == pytest.approx(gmacs, abs=6e-3)
    assert str(cost).endswith(f"at {size}x{size} with 1000 proposals and {detections} masks, the most there are")


def test_counting_changes_nothing() -> None:
    model = small().train()
    model.backbone.body.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    cost = measure(model, (64, 80), 3)
    assert cost.gmacs is not None
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_example_is_an_input() -> None:
    model = small().eval()
    with torch.inference_mode():
        (found,) = model(*model.example(64, 80, 3))
    assert found["masks"].shape == (len(found["boxes"]), 1, 64, 80)
