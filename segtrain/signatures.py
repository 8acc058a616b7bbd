"""Checking plain config values against the signatures of what they configure.

A class's or function's own type hints are the schema: there is no second one to fall out of step.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from segtrain.errors import ConfigError, closest, listed
from segtrain.targets import dotted_name, resolve, type_hints


def parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters of a class or function, and whether any other name is taken too.

    `**kwargs` of a class of ours passes on to its parent's constructor, so the parent's parameters are added.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not inspect.isclass(target):
        every, hints = inspect.signature(target).parameters.values(), type_hints(target)
        named = {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in every if p.kind in kinds}
        return named, any(p.kind == p.VAR_KEYWORD for p in every)
    found: dict[str, inspect.Parameter] = {}
    for parent in target.__mro__:
        if "__init__" not in vars(parent) or parent is object:
            continue
        constructor = vars(parent)["__init__"]
        hints = type_hints(constructor)
        own = list(inspect.signature(constructor).parameters.values())[1:]
        for p in own:
            if p.kind in kinds:
                found.setdefault(p.name, p.replace(annotation=hints.get(p.name, p.annotation)))
        if not any(p.kind == p.VAR_KEYWORD for p in own):
            return found, False
    return found, not found


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
        raise ConfigError(f"{where}={node}", expected=f"the keys of {dotted_name(target)}: {listed(known, 30)}")
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in known:
            if open_ended and not key.startswith("_"):
                continue
            near = closest(key, [name for name in known if name not in set(runtime)])
            raise ConfigError(
                f"{_at(where, key)} is not a key of {dotted_name(target)}",
                expected=listed(sorted(name for name in known if name not in set(runtime)), 30),
                fix=f"did you mean {_at(where, near)}?" if near else None,
            )
        check_value(value, known[key].annotation, _at(where, key), allow=allow)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in node and name not in runtime and name != "self":
            place = _at(where, name)
            raise ConfigError(
                f"{place} is missing", expected=f"a value for {dotted_name(target)}", fix=f"set {place}=…"
            )


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
    if isinstance(hint, str):  # of foreign code, see `targets.type_hints`; the constructor has the last word
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
