"""What a network says, checked, and what may be held of it at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from segtrain.errors import ConfigError, listed
from segtrain.inference.base import WindowedInference

LARGEST_WHOLE = 2**31
"""Logits (classes x pixels) that may be held at once: 8 GiB as float32, and what 32-bit indices of kernels reach."""


def outputs_of(model: nn.Module, image: Tensor, *, resize: bool = True) -> dict[str, Tensor]:
    """What the network says of `image` (B, C, H, W): `out` and maybe others, logits (B, num_classes, H, W).

    With `resize=False`, which only networks of this package know, logits stay at their native size.

    Raises:
        ConfigError: it says something else.
    """
    outputs = model(image) if resize else model(image, resize=False)
    if not isinstance(outputs, (dict, Mapping)):  # a dict is known at once, what is like one takes a search
        raise wrong_outputs(f"the model returns a {type(outputs).__name__}")
    if not isinstance(outputs.get("out"), Tensor):
        raise wrong_outputs(f"the model returns a dict of {listed(outputs) or 'nothing'}, without a tensor 'out'")
    if outputs["out"].ndim != 4:
        raise wrong_outputs(f"the model's 'out' is {tuple(outputs['out'].shape)}")
    return dict(outputs)


def wrong_outputs(found: str, channels: object = "num_classes") -> ConfigError:
    """The error for a network that does not keep the contract of all networks."""
    return ConfigError(
        found,
        where="model._target_",
        expected=f'{{"out": logits (B, {channels}, H, W)}} and maybe "aux": one channel per class of data.classes',
        fix="change what the model's forward returns, or name another model._target_",
    )


def refuse_too_large(inference: object, image: Tensor, num_classes: int) -> None:
    """Stops before the logits of a huge `image` (B, H, W, C) would be held all at once.

    Raises:
        ConfigError: more than `LARGEST_WHOLE` of them.
    """
    count, height, width = image.shape[:3]
    if count * height * width * num_classes <= LARGEST_WHOLE:
        return
    windows = isinstance(inference, WindowedInference)
    raise ConfigError(
        f"an image of {height}x{width} pixels has {height * width * num_classes:,} logits in {num_classes} classes",
        where=f"inference._target_={type(inference).__module__}.{type(inference).__qualname__}",
        expected=f"at most {LARGEST_WHOLE:,} at once; windows of one view, without CRF, need not hold them at once",
        fix=("" if windows else "inference=slide, with ")
        + "inference.size=null inference.scales=[1.0] inference.flip=false inference.crf=false",
    )
