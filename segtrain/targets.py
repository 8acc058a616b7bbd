"""Which classes and functions a config may name.

`_target_` names are resolved only to classes and builders *defined* in packages that are allowed, so that a config
cannot reach `os.system` by an alias. A checkpoint's config is someone else's: what an allowed package holds beside
parts of a network, such as functions that import modules by name or read files, is refused too.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any

from segtrain.errors import ConfigError, closest, listed

ALLOWED = (
    "segtrain.data",
    "segtrain.models",
    "segtrain.losses",
    "segtrain.metrics",
    "segtrain.optim",
    "segtrain.tasks",
    "segtrain.postprocess",
    "segtrain.inference",
    "torchvision.models",
    "torch.nn.modules",
    "torch.optim",
    "albumentations.augmentations",
    "albumentations.core.composition",
    "albumentations.pytorch",
)
"""Packages whose classes and builders a `_target_` may name, private ones excepted."""

READERS = (
    "albumentations.augmentations.mixing.domain_adaptation.BaseDomainAdaptation",
    "albumentations.augmentations.text.transforms.TextImage",
)
"""Classes of allowed packages that open files by a path from the config, with their children."""


def resolve(path: str, where: str, allow: Iterable[str] = ()) -> Callable[..., Any]:
    """The class or function that `path` names, if it is defined under an allowed package.

    Raises:
        ConfigError: no such name, or defined elsewhere.
    """
    allow = tuple(allow)
    allowed = (*ALLOWED, *allow)
    own = isinstance(path, str) and any(_under(path, prefix) for prefix in allow)
    if not own and not _is_public(path, ALLOWED):
        raise _forbidden(path, where, allowed)
    found = _find(path, where, allowed)
    home = f"{getattr(found, '__module__', None) or ''}.{getattr(found, '__qualname__', '')}"
    if any(_under(home, prefix) for prefix in allow) and (inspect.isclass(found) or inspect.isfunction(found)):
        return found
    if not _is_public(home, ALLOWED, whole=True) or not (_is_part(found) or _is_builder(found)):
        raise _forbidden(path, where, allowed)
    return found


def _is_public(path: Any, prefixes: Iterable[str], whole: bool = False) -> bool:
    """Whether no part of a dotted path is private, and it starts like one of the prefixes (`whole`: with all of it)."""
    if not isinstance(path, str):
        return False
    starts = [prefix if whole else prefix.split(".")[0] for prefix in prefixes]
    private = any(part.startswith(("_", "<")) for part in path.split("."))
    return not private and any(_under(path, start) for start in starts)


def _is_part(found: Any) -> bool:
    """A class whose constructor opens no file."""
    return inspect.isclass(found) and not any(dotted_name(parent) in READERS for parent in found.__mro__)


def _is_builder(found: Any) -> bool:
    """A function that makes a network or an optimizer and does nothing else: any other may do anything."""
    if not inspect.isfunction(found) or "." in found.__qualname__:
        return False
    if _under(found.__module__, "torchvision.models"):
        models = sys.modules["torchvision.models"]
        return any(models.get_model_builder(name) is found for name in models.list_models())
    made = type_hints(found).get("return")
    return inspect.isclass(made) and any(
        dotted_name(parent) == "torch.optim.optimizer.Optimizer" for parent in made.__mro__
    )


def _find(path: str, where: str, allowed: Iterable[str]) -> Any:
    """What `path` leads to. Only allowed packages are imported, and those around them: importing runs code too."""
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:split])
        if not any(_under(name, prefix) or _under(prefix, name) for prefix in allowed):
            continue
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not _under(name, error.name):
                raise ConfigError(
                    f"{where}._target_={path} needs the module '{error.name}', which is not installed",
                    fix=f"pip install the package that provides '{error.name}'",
                ) from error
            continue
        for index, part in enumerate(parts[split:]):
            if not hasattr(found, part):
                near = closest(part, (n for n in vars(found) if not n.startswith("_")))
                raise ConfigError(
                    f"{where}._target_={path}: '{'.'.join(parts[: split + index])}' has no '{part}'",
                    fix=f"did you mean {near}?" if near else None,
                )
            found = getattr(found, part)
        return found
    raise ConfigError(f"{where}._target_={path}: there is no module '{parts[0]}'")


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _forbidden(path: object, where: str, allowed: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"{where}._target_={path} is not a class or function of an allowed package",
        expected=f"something defined in {listed(allowed, 20)}",
        fix="for your own package: allow_targets=[mypkg] on the command line or in a local YAML file",
    )


def type_hints(function: Any) -> dict[str, Any]:
    """The hints of a function's parameters and result; none where names in them cannot be found."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # hints of foreign code that only exist for type checkers
        return {}


def dotted_name(target: Callable[..., Any]) -> str:
    """Where a class or function is defined."""
    return f"{target.__module__}.{target.__qualname__}"
