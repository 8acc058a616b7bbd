"""Any network of the timm library that has features at strides 4 to 32: `model.backbone=timm/NAME`."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Any, get_args

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from segtrain.errors import CheckpointError, ConfigError, closest, listed
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.layers import resize_logits

PREFIX = "timm/"


def _timm_name(name: str) -> str:
    if not name.startswith(PREFIX) or name == PREFIX:
        raise PydanticCustomError("timm_name", "timm/NAME of a network of the timm library")
    return name


TimmName = Annotated[str, AfterValidator(_timm_name)]
"""`timm/resnet34d`, or with the name of one of its published weights `timm/resnet50.a1_in1k`."""

WORKING = "timm/resnet34d, timm/resnet50, timm/regnety_002, timm/efficientnet_b0, timm/convnext_atto"
"""Some that follow every output stride, for messages."""
SMALLEST = 32
"""Height and width that every network takes; smaller images are enlarged."""
_REFUSALS = (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError, AttributeError)
"""What timm's networks raise on an argument that they do not take; many have no message."""


class TimmFeatures(nn.Module):
    """Image (B, C, H, W) -> the last four features of a timm network, at strides 4, 8, 16 and 32 or less.

    timm builds the network and dilates it, by its own scheme. Its layers are under `body`, with the key names of
    `timm.create_model(name, features_only=True)`.

    Args:
        name: `timm/NAME`.
        output_stride: stride of the last feature; not every network can be dilated.
        in_channels: channels of the image.

    Raises:
        ConfigError: timm is not installed, there is no such network, or it has no features that fit: at other
            strides, not at this output stride, or for one image size only.
    """

    aux_feature = 2
    """Position of the feature that an auxiliary head reads: the second deepest."""

    def __init__(self, name: str, *, output_stride: OutputStride = 32, in_channels: int = 3) -> None:
        super().__init__()
        _refuse_unknown(name)
        self.name = name
        self.in_channels = in_channels
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        try:
            body = _features(name, output_stride, in_channels)
        except _REFUSALS as error:
            raise self._misfit(_reason(error)) from error
        self.body: nn.Module = body
        self.settings: dict[str, Any] = body.pretrained_cfg
        info = body.feature_info
        if info.reduction() != self.strides:
            raise self._misfit(f"its features have the strides {listed(info.reduction())}")
        if self.settings.get("fixed_input_size"):
            raise self._misfit("it takes images of one size only")
        self.out_channels: list[int] = info.channels()
        # Some networks work with the channels last, and hand them out so.
        self.channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        # Kernels without padding need one pixel at the deepest stride, whatever is then dilated.
        height, width = (max(side, SMALLEST) for side in image.shape[-2:])
        features: list[Tensor] = self.body(resize_logits(image, (height, width)))
        return [feature.permute(0, 3, 1, 2) for feature in features] if self.channels_last else features

    def from_classifier(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of timm's classification network, as this backbone's own; its classifier is dropped.

        timm renames layers where it takes features, so that it must load the file itself.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape.
        """
        own = self.body.state_dict()
        if state.keys() <= own.keys():  # the features of such a network, without its head
            return {f"body.{key}": value for key, value in state.items()}
        with torch.device("meta"):
            whole = _timm().create_model(self.name.removeprefix(PREFIX))
        heads = tuple(f"{head}." for head in self.heads())
        wanted = {key: value.shape for key, value in whole.state_dict().items() if not key.startswith(heads)}
        found = {key: value.shape for key, value in state.items() if not key.startswith(heads)}
        if wrong := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
            raise CheckpointError(
                f"the weights do not fit {self.name}, tensor by tensor: {len(wrong)} missing, unexpected "
                "or of another shape",
                where=listed(wrong, 3),
                expected=f"the {len(wanted)} tensors of timm.create_model('{self.name.removeprefix(PREFIX)}')",
                fix="choose the model.backbone the file was made for, or model.weights=none",
            )
        return self._loaded(pretrained_cfg_overlay={"state_dict": {key: state[key] for key in wanted}})

    def heads(self) -> tuple[str, ...]:
        """Names of the classification network's last layers, which have no use here."""
        settings = _timm().models.get_pretrained_cfg(self.name.removeprefix(PREFIX))
        named = settings.classifier if settings else None
        return (named,) if isinstance(named, str) else tuple(named or ())

    def published(self) -> dict[str, Tensor]:
        """timm's own weights for this network, fetched by timm into its cache; one channel gets the sum of three.

        Raises:
            ConfigError: timm has none.
            CheckpointError: the download failed.
        """
        if not _timm().models.is_model_pretrained(self.name.removeprefix(PREFIX)):
            raise ConfigError(
                f"timm publishes no weights for {self.name}",
                where="model.weights=imagenet",
                fix="model.weights=none or model.weights=PATH",
            )
        try:
            return self._loaded()
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"timm could not load the weights of {self.name}: {str(error) or type(error).__name__}",
                where=self.settings.get("hf_hub_id") or self.settings.get("url"),
                expected="a network connection, or the file in the cache of huggingface_hub (folder HF_HOME)",
                fix="fetch it on a machine with a network, or set model.weights=PATH or model.weights=none",
            ) from error

    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and deviation that timm's weights were trained with; not ImageNet's for every network."""
        return list(self.settings["mean"]), list(self.settings["std"])

    def _loaded(self, **options: Any) -> dict[str, Tensor]:
        """This backbone's state_dict with weights that timm puts into a second one."""
        body = _features(self.name, self.strides[-1], self.in_channels, pretrained=True, **options)
        return {f"body.{key}": value for key, value in body.state_dict().items()}

    def _misfit(self, reason: str) -> ConfigError:
        stride = self.strides[-1]
        usable = [other for other in get_args(OutputStride) if other != stride and _fits(self.name, other)]
        choices = [f"model.output_stride={other}" for other in usable]
        return ConfigError(
            f"{self.name} cannot be a backbone at output stride {stride}: {reason}",
            where=f"model.backbone={self.name}",
            expected=f"features at strides {listed(self.strides)}, for images of any size",
            fix=" or ".join([*choices, f"another network, such as {WORKING}"]),
        )


def _timm() -> ModuleType:
    try:
        import timm  # only here: nobody who does not ask for it needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the backbones timm/NAME need the timm library, which is not installed",
            where="model.backbone",
            fix="pip install -e '.[timm]'",
        ) from error
    return timm


def _features(name: str, output_stride: int, in_channels: int = 3, **options: Any) -> Any:
    # Networks that cannot be dilated do not take the argument at all.
    stride = {} if output_stride == 32 else {"output_stride": output_stride}
    return _timm().create_model(
        name.removeprefix(PREFIX),
        features_only=True,
        out_indices=(-4, -3, -2, -1),
        in_chans=in_channels,
        **stride,
        **options,
    )


def _fits(name: str, output_stride: int) -> bool:
    """Whether the network has features at 4 to `output_stride`; built without memory for its weights."""
    with torch.device("meta"):
        try:
            body = _features(name, output_stride)
        except _REFUSALS:
            return False
    fixed = body.pretrained_cfg.get("fixed_input_size")
    return not fixed and body.feature_info.reduction() == [min(s, output_stride) for s in (4, 8, 16, 32)]


def _refuse_unknown(name: str) -> None:
    timm = _timm()
    wanted = name.removeprefix(PREFIX)
    architecture, _, tag = wanted.partition(".")
    if not timm.is_model(wanted):
        found, known = f"timm {timm.__version__} has no network '{architecture}'", timm.list_models()
    elif tag and wanted not in timm.list_pretrained(f"{architecture}.*"):
        found, known = f"timm has no weights '{tag}' for {architecture}", timm.list_pretrained(f"{architecture}.*")
    else:
        return
    near = closest(wanted, known)
    raise ConfigError(
        found,
        where=f"model.backbone={name}",
        expected=f"a name that timm.list_models() lists, such as {WORKING}"
        if not tag
        else f"one of {listed(PREFIX + other for other in known)}",
        fix=f"did you mean model.backbone={PREFIX}{near}?" if near else None,
    )


def _reason(error: Exception) -> str:
    """What timm said, in one line; its assertions often say nothing."""
    said = (str(error).splitlines() or [""])[0]
    return "timm cannot dilate it" if not said or "output_stride" in said else said
