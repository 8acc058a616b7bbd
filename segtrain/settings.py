"""A config as checked plain data.

Every node is checked against the signature of what it configures before anything is built or any data is touched: a
wrong key, type or range stops a run within a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segtrain import signatures, targets
from segtrain.composition import register_resolvers
from segtrain.data.loader import LoaderOptions
from segtrain.errors import ConfigError, closest, listed
from segtrain.resolving import environment_values, refuse_to_write_down, resolved
from segtrain.trainer_options import TrainerOptions
from segtrain.types import NonNegativeFloat, PositiveFloat, Size

Plain = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """`model.normalize`: per channel, for images scaled to [0, 1]."""

    mean: list[float]
    std: list[PositiveFloat]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The keys of a `model` node that are not the network's own."""

    normalize: Any
    weights: str = "none"
    freeze_bn: bool = False


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The keys of a `loss` node that are not the loss's own."""

    class_weights: Literal["none", "auto", "median_frequency"] | list[NonNegativeFloat] = "none"


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The keys of an `optimizer` node that shape its parameter groups."""

    backbone_lr_mult: NonNegativeFloat = 1.0
    head_lr_mult: NonNegativeFloat = 1.0
    bias_lr_mult: NonNegativeFloat = 1.0
    decay_norm_bias: bool = False


# What the program passes to each node's target itself, and the options that ride along in the node.
RUNTIME: dict[str, tuple[str, ...]] = {
    "data": ("split", "transform", "seed"),
    "model": (),
    "loss": (),
    "optimizer": ("params",),
    "scheduler": (),
    "inference": (),
    "task": ("loss", "classes", "palette", "mean", "std", "inference", "parts", "things"),
}
RIDERS: dict[str, Any] = {
    "data": LoaderOptions,
    "model": ModelOptions,
    "loss": LossOptions,
    "optimizer": GroupOptions,
}
OTHER_KEYS = ("augment", "trainer", "name", "allow_targets")


class Settings:
    """A config as checked plain data: `node[...]` for what is built, `rider[...]` for the options beside it."""

    def __init__(self, cfg: DictConfig) -> None:
        register_resolvers()
        self.tree: Any = OmegaConf.to_container(cfg, resolve=False)
        _check_parts(self.tree)
        self.hidden = environment_values(self.tree)
        with self._nothing_told():
            self._check(cfg)

    def _check(self, cfg: DictConfig) -> None:
        plain = resolved(cfg, RUNTIME)
        _check_name_and_packages(plain)
        refuse_to_write_down(self.tree, plain, self.hidden)
        self.allow: list[str] = list(plain.get("allow_targets") or [])
        self.node: dict[str, Plain] = {}
        self.rider: dict[str, Any] = {}
        for name in RUNTIME:
            self._check_node(name, plain[name])
        signatures.check(plain["trainer"], TrainerOptions, "trainer")
        self.options = TrainerOptions(**plain["trainer"])
        self.augment: Plain = plain["augment"]
        self._check_augment()
        self.name: str = plain.get("name") or "custom"

    def _check_node(self, name: str, node: Plain) -> None:
        node = {key: value for key, value in node.items() if key == "_target_" or not key.startswith("_")}
        rider = RIDERS.get(name)
        own = {key for key in node if rider is not None and signatures.takes(rider, key)}
        target = targets.resolve(node.get("_target_", "???"), name, self.allow)
        if rider is not None:
            riding = {key: node[key] for key in own}
            signatures.check(riding, rider, name)
            self.rider[name] = rider(**riding)
        # num_classes of a dataset of the user's own goes to both; `weights` of torchvision's builders is not ours.
        shared = {key for key in own if name == "data" and signatures.takes(target, key)}
        self.node[name] = {key: value for key, value in node.items() if key not in own or key in shared}
        signatures.check(self.node[name], target, name, runtime=RUNTIME[name], allow=self.allow)
        if name == "optimizer":
            # Each parameter group has a rate of its own, so a target's default does not do, nor an unchecked tensor.
            signatures.check_value(node.get("lr", "???"), PositiveFloat, "optimizer.lr")
        if name == "model":
            signatures.check(node["normalize"], Normalize, "model.normalize")

    def _check_augment(self) -> None:
        node, where = self.augment, "augment"
        kinds = {self.target("task").name, getattr(self.target("data"), "task", "semantic")}
        if kinds == {"semantic"} and node.get("crop_size") is None:
            raise ConfigError(
                "task=semantic with an augmentation that has no crop_size",
                where="augment",
                expected="images with one class per pixel, brought to one size",
                fix="augment=basic; or data with one mask per object, and model=maskrcnn with task=instance",
            )
        if "crop_size" in node:  # objects may keep their images' sizes
            signatures.check_value(node.get("crop_size"), Size, "augment.crop_size")
        transforms = node.get("transforms")
        if not isinstance(transforms, dict):
            raise ConfigError(
                f"augment.transforms={transforms}", expected="transforms by name", fix="augment=none has no randomness"
            )
        signatures.check_targets(node, where, self.allow)
        # Any other key is there for transforms to refer to; one that none does and that is nearly another is a typo.
        text = str(self.tree)
        known = [key for key in node if key in ("crop_size", "transforms") or f"{{augment.{key}}}" in text]
        for key in node:
            near = None if key in known else closest(key, known)
            if near is not None:
                raise ConfigError(f"nothing uses the config key 'augment.{key}'", fix=f"did you mean augment.{near}?")

    def target(self, name: str) -> Any:
        """The class or function that a node names."""
        return targets.resolve(self.node[name]["_target_"], name, self.allow)

    @property
    def monitor(self) -> str:
        """The score that chooses the best epoch."""
        return self.options.monitor or next(iter(self.target("task").monitors), "")

    def make(self, name: str, **runtime: Any) -> Any:
        """Builds the object of a node."""
        with self._nothing_told():
            return signatures.instantiate(self.node[name], name, allow=self.allow, **runtime)

    @contextmanager
    def _nothing_told(self) -> Iterator[None]:
        """Errors say where a value of the environment is from, and not what it is."""
        try:
            yield
        except ConfigError as error:
            for part in ("found", "where", "expected", "fix"):
                text = getattr(error, part)
                for value, name in self.hidden.items():
                    text = text and text.replace(value, f"${{oc.env:{name}}}")
                setattr(error, part, text)
            raise


def _check_parts(tree: Any) -> None:
    """The tree's first level: all parts of a run and nothing else. First, because values refer to other parts."""
    known = (*RUNTIME, *OTHER_KEYS)
    unknown = [str(key) for key in tree if key not in known]
    if unknown:
        near = closest(unknown[0], known)
        raise ConfigError(
            f"there is no config key {listed(unknown)}",
            expected=listed(known, 20),
            fix=f"did you mean {near}?" if near else None,
        )
    for part in (*RUNTIME, "augment", "trainer"):
        if not isinstance(tree.get(part), dict):
            raise ConfigError(
                f"the config has no '{part}'" if tree.get(part) is None else f"{part}={tree[part]}",
                expected=f"a run has all of {listed([*RUNTIME, 'augment', 'trainer'], 20)}",
                fix=f"choose one with {part}=…",
            )


def _check_name_and_packages(plain: Plain) -> None:
    signatures.check_value(plain.get("allow_targets"), list[str] | None, "allow_targets")
    signatures.check_value(plain.get("name"), str | None, "name")
    path = PurePath(plain.get("name") or "")
    if path.is_absolute() or ".." in path.parts:  # a name may come from a checkpoint: it must not lead elsewhere
        raise ConfigError(
            f"name={plain['name']}", expected="a folder below outputs/", fix="hydra.run.dir=DIR sets the run folder"
        )
