"""Checking plain config values against the signatures of what they configure.

A class's or function's own type hints are the schema: there is no second one to fall out of step. `_target_` names are
resolved only to classes and builders *defined* in packages that are allowed, so that a config cannot reach
`os.system` by an alias. A checkpoint's config is someone else's: what an allowed package holds beside parts of a
network, such as functions that import modules by name or read files, is refused too.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

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
    return inspect.isclass(found) and not any(_name(parent) in READERS for parent in found.__mro__)


def _is_builder(found: Any) -> bool:
    """A function that makes a network or an optimizer and does nothing else: any other may do anything."""
    if not inspect.isfunction(found) or "." in found.__qualname__:
        return False
    if _under(found.__module__, "torchvision.models"):
        models = sys.modules["torchvision.models"]
        return any(models.get_model_builder(name) is found for name in models.list_models())
    made = _hints(found).get("return")
    return inspect.isclass(made) and any(_name(parent) == "torch.optim.optimizer.Optimizer" for parent in made.__mro__)


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


def parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters of a class or function, and whether any other name is taken too.

    `**kwargs` of a class of ours passes on to its parent's constructor, so the parent's parameters are added.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not inspect.isclass(target):
        every, hints = inspect.signature(target).parameters.values(), _hints(target)
        named = {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in every if p.kind in kinds}
        return named, any(p.kind == p.VAR_KEYWORD for p in every)
    found: dict[str, inspect.Parameter] = {}
    for parent in target.__mro__:
        if "__init__" not in vars(parent) or parent is object:
            continue
        constructor = vars(parent)["__init__"]
        hints = _hints(constructor)
        own = list(inspect.signature(constructor).parameters.values())[1:]
        for p in own:
            if p.kind in kinds:
                found.setdefault(p.name, p.replace(annotation=hints.get(p.name, p.annotation)))
        if not any(p.kind == p.VAR_KEYWORD for p in own):
            return found, False
    return found, not found


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # hints of foreign code that only exist for type checkers
        return {}


def check(
    node: Mapping[str, Any],
    target: Callable[..., Any],
    where: str,
    *,
    runtime: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> None:
    """Refuses a config node whose keys or values do not fit `target`'s signature; builds nothing.

    Args:
        node: plain data; nodes with a `_target_` inside are checked in their turn.
        where: the node's place in the config, for the error.
        runtime: parameters that the program passes itself.

    Raises:
        ConfigError: unknown key, missing key, wrong type or range.
    """
    known, open_ended = parameters(target)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}={node}", expected=f"the keys of {_name(target)}: {listed(known, 30)}")
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in known:
            if open_ended and not key.startswith("_"):
                continue
            near = closest(key, [name for name in known if name not in set(runtime)])
            raise ConfigError(
                f"{_at(where, key)} is not a key of {_name(target)}",
                expected=listed(sorted(name for name in known if name not in set(runtime)), 30),
                fix=f"did you mean {_at(where, near)}?" if near else None,
            )
        check_value(value, known[key].annotation, _at(where, key), allow=allow)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in node and name not in runtime and name != "self":
            place = _at(where, name)
            raise ConfigError(f"{place} is missing", expected=f"a value for {_name(target)}", fix=f"set {place}=…")


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def check_value(value: Any, hint: Any, where: str, *, allow: Iterable[str] = ()) -> None:
    """Refuses a plain value that does not have the hinted type and range, strictly: no string or bool for a number."""
    if value == "???":
        raise ConfigError(f"{where} is not set", fix=f"set {where}=…")
    if check_targets(value, where, allow) or hint in (inspect.Parameter.empty, Any):
        return
    adapter = _adapter(hint)
    if adapter is None:
        return
    try:
        # JSON mode: lists stand for tuples as in YAML, and still no "3" for 3.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wanted = list(dict.fromkeys(_message(item) for item in error.errors()))
        choices = [c for item in error.errors() for c in _choices(item)]
        near = closest(str(value), choices) if choices else None
        raise ConfigError(
            f"{where}={_shown(value)}",
            expected=" or ".join(wanted),
            fix=f"did you mean {where}={near}?" if near else None,
        ) from error


def check_targets(value: Any, where: str, allow: Iterable[str] = ()) -> bool:
    """Checks every node with a `_target_` inside `value`; returns whether there was one."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            check(value, resolve(value["_target_"], where, allow), where, allow=allow)
            return True
        places = {f"{where}.{key}": item for key, item in value.items()}
    elif isinstance(value, list):
        places = {f"{where}[{i}]": item for i, item in enumerate(value)}
    else:
        return False
    found = [check_targets(item, place, allow) for place, item in places.items()]  # a list: check all of them
    return any(found)


def instantiate(node: Any, where: str, *, allow: Iterable[str] = (), **runtime: Any) -> Any:
    """Builds the object of a checked node: inner nodes first, then the call, with `runtime` arguments added.

    Raises:
        ConfigError: a constructor refuses its arguments.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{where}[{i}]", allow=allow) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    built = {key: instantiate(v, f"{where}.{key}", allow=allow) for key, v in node.items() if key != "_target_"}
    if "_target_" not in node:
        return built
    target = resolve(node["_target_"], where, allow)
    try:
        return target(**built, **runtime)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):  # albumentations checks ranges with pydantic too
            wrong = [f"{'.'.join(str(part) for part in item['loc'])}: {_message(item)}" for item in cause.errors()]
            raise ConfigError(f"{where} cannot be built", where=node["_target_"], expected="\n".join(wrong)) from error
        text = str(error)
        text = text if len(text) <= 300 else text[:299] + "…"
        raise ConfigError(f"{where} cannot be built: {text}", where=node["_target_"]) from error


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether a class or function has a parameter of this name."""
    return name in parameters(target)[0]


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """None where the hint holds classes that no plain value can be an instance of, or names that cannot be found."""
    if isinstance(hint, str):  # of foreign code, see `_hints`; the constructor has the last word
        return None
    try:
        return TypeAdapter(_by_name(hint), config=ConfigDict(arbitrary_types_allowed=False, allow_inf_nan=False))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def _by_name(hint: Any) -> Any:
    """The hint with the names of an enumeration in its place: torchvision's builders take `DEFAULT` as text."""
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return typing.Literal[tuple(hint.__members__)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_by_name(part) for part in typing.get_args(hint))]  # noqa: UP007 - parts are computed
    return hint


def _message(item: Mapping[str, Any]) -> str:
    text = str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    place = ".".join(str(p) for p in item["loc"] if not isinstance(p, str) or p.isidentifier())
    return f"{text} (at {place})" if any(isinstance(p, int) for p in item["loc"]) and place else text


def _choices(item: Mapping[str, Any]) -> list[str]:
    if item["type"] != "literal_error":
        return []
    return [part.strip("' ") for part in str(item["ctx"]["expected"]).replace(" or ", ",").split(",")]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _name(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"
