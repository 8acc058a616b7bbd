"""Mask R-CNN (He et al. 2017, arXiv 1703.06870): the objects of an image, each with a box, a class and a mask.

The network is torchvision's own code, tensor by tensor, so that its weights load; `MaskRCNN` gives its numbers names
that a config can set. From an image to its objects it goes like this.

1. Size. An image is resized until its shorter side is `min_size`, or its longer one `max_size` if that comes first.
   The images of a batch are padded with zeros at the right and at the bottom, to a multiple of 32.
2. Features. A ResNet gives four maps at strides 4, 8, 16 and 32. The feature pyramid (Lin et al. 2017, arXiv
   1612.03144) brings each to 256 channels and adds the coarser one, doubled by nearest neighbor: P2 to P5, each as
   telling as the deepest and as fine as its own stride. P6 is every second pixel of P5 and serves proposals only.
3. Proposals (RPN). Around each pixel of each level lie fixed boxes, the anchors: one size per level, three ratios of
   height to width. A small head, the same for all levels, says of each anchor how likely it holds an object of any
   class (one logit) and how to move its edges (four numbers). The best `rpn_pre_nms` of each level go through
   non-maximum suppression, and the best `rpn_post_nms` of the image remain.
4. RoIAlign. A proposal of area w h is cut from level k = floor(4 + log2(sqrt(w h) / 224)), kept within 2 and 5, as
   7x7 values for its class and 14x14 for its mask: the box is cut into that many bins, and a bin is the mean of 2x2
   points, each interpolated between the four pixels around it. Nothing is rounded, which is what masks need.
5. Three heads. On 7x7: scores of all classes, background first, and a box per class. On 14x14, where a class was
   found: a mask of 28x28 per class, of which that class's is taken and resized to the box.

In training, anchors and proposals are matched to the truth by IoU, and a sample of them is judged. Five losses add up:
`loss_objectness` and `loss_rpn_box_reg` of the anchors, `loss_classifier`, `loss_box_reg` and `loss_mask` of the
proposals; the last is the cross entropy of the true class's mask, on proposals that hold an object.

RoIAlign has two conventions of where a pixel is. Boxes count edges: pixel i covers [i, i + 1], its center is i + 0.5.
With `aligned=False`, which this network and its weights were made with, position x reads the value at index x, as if
the center were i: all is read half a pixel of the level too far right and down, and the heads learn with it. With
`aligned=True`, detectron2's, the half is taken off first. Weights of one kind are wrong under the other.

The map below has 8 i + j in row i and column j. Being linear, it makes each bin's mean the value at its center. The
first bin's lies at x = 1 + 5.5 / 4 = 2.375 and y = 2 + 5 / 4 = 3.25, so that 8 * 3.25 + 2.375 is read; and with
alignment, half a row and half a column before, 4.5 less.

>>> import torch
>>> from torchvision.ops import roi_align
>>> feature = torch.arange(64.0).view(1, 1, 8, 8)
>>> box = torch.tensor([[1.0, 2.0, 6.5, 7.0]])  # x0, y0, x1, y1
>>> roi_align(feature, [box], output_size=2, spatial_scale=1.0, sampling_ratio=2, aligned=False)[0, 0].tolist()
[[28.375, 31.125], [48.375, 51.125]]
>>> roi_align(feature, [box], output_size=2, spatial_scale=1.0, sampling_ratio=2, aligned=True)[0, 0].tolist()
[[23.875, 26.625], [43.875, 46.625]]
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torchvision
from annotated_types import Interval, Len
from torch import Tensor, nn
from torchvision.models.detection import mask_rcnn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import FrozenBatchNorm2d

from segtrain.errors import ConfigError
from segtrain.models.maskrcnn_weights import State, adapt
from segtrain.types import Fraction, NumClasses, PositiveFloat, PositiveInt

PYRAMID_CHANNELS = 256
ANCHOR_SIZES: list[PositiveInt | list[PositiveInt]] = [32, 64, 128, 256, 512]
ASPECT_RATIOS: list[PositiveFloat] = [0.5, 1.0, 2.0]
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")
"""Parts of a ResNet in the order in which `trainable_layers` counts them."""


class MaskRCNN(mask_rcnn.MaskRCNN):
    """Mask R-CNN on a ResNet with a feature pyramid, as torchvision's `maskrcnn_resnet50_fpn` and its `_v2`.

    Takes torchvision's state_dict key for key. In training mode it is called with images and targets and returns the
    five losses by name; in evaluation mode with images, and returns one dictionary per image: `boxes` (N, 4), `labels`
    and `scores` (N,), `masks` (N, 1, H, W) in [0, 1]. Images are float (3, H, W) of any sizes, already normalized.

    Which detections count (score, suppression, how many) is decided outside, on `roi_heads`.

    Args:
        num_classes: background included, as class 0.
        in_channels: color only.
        backbone: the ResNet.
        version: v1 is the paper's; v2 (Li et al. 2021, arXiv 2111.11429) has batch normalization in pyramid and heads,
            two convolutions in the RPN head and four in the box head.
        norm: of the ResNet: batch, or frozen as loaded, for batches too small for statistics.
        trainable_layers: how many of the ResNet's five parts are trained, from the end; 5: all. Unlike a frozen
            normalization, a batch normalization in a part that is not trained still gathers statistics.
        min_size: length of the shorter side, in pixels. Several: training draws one for each image, and evaluation
            takes the last.
        max_size: limit of the longer side, which comes first.
        anchor_sizes: square root of the area of each level's anchors, in pixels of the resized image; five, finest
            level first; or five lists.
        aspect_ratios: height to width of the anchors, for all levels.
        rpn_pre_nms_train: proposals of a level before suppression.
        rpn_pre_nms_test: the same in evaluation.
        rpn_post_nms_train: proposals of an image that remain after it.
        rpn_post_nms_test: the same in evaluation.
        rpn_nms: IoU above which the less likely of two proposals goes.
        rpn_fg_iou: IoU with an object from which an anchor counts as holding it.
        rpn_bg_iou: IoU below which it counts as background; in between it is not judged.
        rpn_batch: anchors judged per image.
        rpn_positive_fraction: largest share of those that hold an object.
        box_fg_iou: IoU with an object from which a proposal counts as holding it.
        box_bg_iou: IoU below which it counts as background.
        box_batch: proposals judged per image.
        box_positive_fraction: largest share of those that hold an object.

    Raises:
        ConfigError: levels with different numbers of anchors, or a background IoU above the object's.
    """

    class_layers: ClassVar[tuple[str, ...]] = (
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    )
    rows_per_class: ClassVar[dict[str, int]] = {"roi_heads.box_predictor.bbox_pred": 4}
    """Outputs of one class where a class layer has several, one after the other."""

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: Literal[3] = 3,
        backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50",
        version: Literal["v1", "v2"] = "v1",
        norm: Literal["batch", "frozen"] = "batch",
        trainable_layers: Annotated[int, Interval(ge=0, le=5)] = 5,
        min_size: PositiveInt | Annotated[list[PositiveInt], Len(1)] = 800,
        max_size: PositiveInt = 1333,
        anchor_sizes: Annotated[list[PositiveInt | Annotated[list[PositiveInt], Len(1)]], Len(5, 5)] = ANCHOR_SIZES,
        aspect_ratios: Annotated[list[PositiveFloat], Len(1)] = ASPECT_RATIOS,
        rpn_pre_nms_train: PositiveInt = 2000,
        rpn_pre_nms_test: PositiveInt = 1000,
        rpn_post_nms_train: PositiveInt = 2000,
        rpn_post_nms_test: PositiveInt = 1000,
        rpn_nms: Fraction = 0.7,
        rpn_fg_iou: Fraction = 0.7,
        rpn_bg_iou: Fraction = 0.3,
        rpn_batch: PositiveInt = 256,
        rpn_positive_fraction: Fraction = 0.5,
        box_fg_iou: Fraction = 0.5,
        box_bg_iou: Fraction = 0.5,
        box_batch: PositiveInt = 512,
        box_positive_fraction: Fraction = 0.25,
    ) -> None:
        _check_order("rpn", rpn_bg_iou, rpn_fg_iou)
        _check_order("box", box_bg_iou, box_fg_iou)
        anchors = _anchors(anchor_sizes, aspect_ratios)
        super().__init__(
            _backbone(backbone, version, norm, trainable_layers),
            num_classes,
            min_size=min_size,
            max_size=max_size,
            # Images come normalized. Normalization goes before resizing and padding here as in torchvision, so that
            # the padding's zeros mean the same.
            image_mean=[0.0] * in_channels,
            image_std=[1.0] * in_channels,
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=rpn_pre_nms_train,
            rpn_pre_nms_top_n_test=rpn_pre_nms_test,
            rpn_post_nms_top_n_train=rpn_post_nms_train,
            rpn_post_nms_top_n_test=rpn_post_nms_test,
            rpn_nms_thresh=rpn_nms,
            rpn_fg_iou_thresh=rpn_fg_iou,
            rpn_bg_iou_thresh=rpn_bg_iou,
            rpn_batch_size_per_image=rpn_batch,
            rpn_positive_fraction=rpn_positive_fraction,
            box_fg_iou_thresh=box_fg_iou,
            box_bg_iou_thresh=box_bg_iou,
            box_batch_size_per_image=box_batch,
            box_positive_fraction=box_positive_fraction,
            **_heads(version, anchors.num_anchors_per_location()[0]),
        )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.proposals = rpn_post_nms_test
        self.usual_size = min_size if isinstance(min_size, int) else min_size[-1]
        """Side in pixels of what most images are brought to, for counting work."""
        self.fixed_parts = _fixed_parts(norm, trainable_layers)
        """What training leaves as it is, in words."""
        self.imagenet_name = backbone
        forms = {"v1": "maskrcnn_resnet50_fpn", "v2": "maskrcnn_resnet50_fpn_v2"}
        self.torchvision_form = forms[version] if backbone == "resnet50" else None

    def adapt(self, state: State, file: str) -> tuple[State, list[str]]:
        """Someone's state_dict as this network understands it, and what was done to it; `file`: its name."""
        return adapt(state, file)

    def example(self, height: int, width: int, channels: int) -> tuple[list[Tensor]]:
        """Positional inputs of one evaluation: one black image."""
        return ([torch.zeros(channels, height, width)],)

    def workload(self) -> Workload:
        """What one evaluation computes at most, which no image but only the config decides."""
        return Workload(self)


def _fixed_parts(norm: str, trainable_layers: int) -> list[str]:
    frozen = ["the backbone's normalizations"] if norm == "frozen" else []
    first = ["conv1", "layer1", "layer2", "layer3", "layer4"][: 5 - trainable_layers]
    return frozen + [f"backbone.body.{name}" for name in first]


class Workload(nn.Module):
    """The layers of a Mask R-CNN on as many proposals and detections as it may have.

    How many it has depends on the image and on what was learned; at random weights it is chance. This is the most:
    `rpn_post_nms_test` proposals and all `roi_heads.detections_per_img` detections, neither chosen nor cut out,
    so that it can be counted without values.
    """

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model
        self.proposals = model.proposals
        self.detections = model.roi_heads.detections_per_img

    @property
    def counting(self) -> str:
        """What to say beside the figure."""
        return f"with {self.proposals} proposals and {self.detections} masks, the most there are"

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        """Images (C, H, W) -> scores (B proposals, classes), boxes (B proposals, 4 classes), masks (..., 28, 28)."""
        batch, _ = self.model.transform(images)
        features = list(self.model.backbone(batch.tensors).values())
        self.model.rpn.head(features)
        heads = self.model.roi_heads
        cut = [
            features[0].new_zeros(len(images) * count, PYRAMID_CHANNELS, *pool.output_size)
            for count, pool in ((self.proposals, heads.box_roi_pool), (self.detections, heads.mask_roi_pool))
        ]
        scores, boxes = heads.box_predictor(heads.box_head(cut[0]))
        return [scores, boxes, heads.mask_predictor(heads.mask_head(cut[1]))]


def _backbone(name: str, version: str, norm: str, trainable_layers: int) -> BackboneWithFPN:
    body = torchvision.models.get_model(
        name, weights=None, norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    )
    trained = (*STAGES[:trainable_layers], *(["bn1"] if trainable_layers == len(STAGES) else []))
    for key, parameter in body.named_parameters():
        parameter.requires_grad_(key.startswith(trained))
    first = body.inplanes // 8  # inplanes is what the last of four stages gives, each twice the one before
    return BackboneWithFPN(
        body,
        return_layers={f"layer{stage + 1}": str(stage) for stage in range(4)},
        in_channels_list=[first * 2**stage for stage in range(4)],
        out_channels=PYRAMID_CHANNELS,
        norm_layer=nn.BatchNorm2d if version == "v2" else None,
    )


def _heads(version: str, anchors: int) -> dict[str, nn.Module]:
    """What v2 has in place of the constructor's own heads."""
    if version == "v1":
        return {}
    width = [PYRAMID_CHANNELS] * 4
    return {
        "rpn_head": RPNHead(PYRAMID_CHANNELS, anchors, conv_depth=2),
        "box_head": FastRCNNConvFCHead((PYRAMID_CHANNELS, 7, 7), width, [1024], norm_layer=nn.BatchNorm2d),
        "mask_head": mask_rcnn.MaskRCNNHeads(PYRAMID_CHANNELS, width, 1, norm_layer=nn.BatchNorm2d),
    }


def _anchors(sizes: list[Any], ratios: list[float]) -> AnchorGenerator:
    levels = tuple((size,) if isinstance(size, int) else tuple(size) for size in sizes)
    if len({len(level) for level in levels}) > 1:
        raise ConfigError(
            "the levels have different numbers of anchors, and one RPN head serves them all",
            where=f"model.anchor_sizes={sizes}",
            expected="as many sizes on each level",
            fix=f"model.anchor_sizes={ANCHOR_SIZES}",
        )
    return AnchorGenerator(levels, (tuple(ratios),) * len(levels))


def _check_order(part: str, background: float, foreground: float) -> None:
    if background > foreground:
        raise ConfigError(
            f"{part}_bg_iou is above {part}_fg_iou: a box between them would be object and background",
            where=f"model.{part}_bg_iou={background} model.{part}_fg_iou={foreground}",
            expected=f"model.{part}_bg_iou at most model.{part}_fg_iou",
            fix=f"model.{part}_bg_iou={foreground}",
        )
