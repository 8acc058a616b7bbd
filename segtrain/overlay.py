"""A checkpoint's config with the user's words laid over it.

A command on a checkpoint starts from the config inside the file, which Hydra cannot know: what the user says about it
passes by Hydra and is laid over that config once it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from segtrain.composition import BUNDLES, compose, config_dir, groups, known_keys, leaf_keys, translated, unknown_key
from segtrain.errors import ConfigError


def split_overrides(command: str, argv: list[str]) -> list[str]:
    """For commands on a checkpoint: hides overrides of the checkpoint's own config from Hydra.

    `data.root=/x` becomes `++over.data.root=/x` and `data=voc` becomes `++choices.data=voc`; the command lays them over
    the config inside the checkpoint. Keys of the command itself, flags and Hydra's keys pass through.
    """
    if command == "compare":
        argv = _runs_together(argv)
    own = root_keys(command)
    tree = root_keys("train") | set(groups())
    result = []
    for argument in argv:
        if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
            result.append(argument)
            continue
        with translated(command, argv):
            override = OverridesParser.create().parse_override(argument)
        key = override.key_or_group
        top = key.split(".")[0].split("/")[0]
        if top not in own | tree:
            raise unknown_key(key, [*sorted(own), *known_keys("train", [])])
        if top in own:
            result.append(argument)
        elif override.is_delete():
            raise ConfigError(
                f"'{argument}': keys of a checkpoint's config cannot be removed", fix="override their value"
            )
        else:
            value = argument.split("=", 1)[1]
            chosen = key in groups() and not value.startswith("{")  # inference={size: 64} sets values
            result.append(f"++choices.{key}={value}" if chosen else f"++over.{key}={value}")
    return result


def root_keys(command: str) -> set[str]:
    """First-level keys of a command's own YAML file, groups apart; to compose it takes a tenth of a second more."""
    return {str(key) for key in OmegaConf.load(config_dir() / f"{command}.yaml")} - {"defaults"}


def _runs_together(argv: list[str]) -> list[str]:
    """`compare A B` as `runs=[A,B]`: the only command that takes plain words."""
    # A folder's name may hold an '='; no key of the command is also the name of a folder that is there.
    runs = [word for word in argv if not word.startswith(("-", "~", "+"))]
    plain = [word for word in runs if "=" not in word or Path(word).is_dir()]
    if not plain:
        return argv
    quoted = [QuotedString(word, Quote.single).with_quotes() for word in plain]
    return [*(word for word in argv if word not in plain), f"runs=[{','.join(quoted)}]"]


def chosen(over: Mapping[str, Any], choices: Mapping[str, str]) -> DictConfig:
    """The config of a command that has no checkpoint to begin with: training's, with these groups and values.

    Composed with the choices, so that a model brings its task along; laid over, it would not.

    Raises:
        ConfigError: as `lay_over`.
    """
    base: Any = OmegaConf.to_container(compose(f"{group}={option}" for group, option in choices.items()), resolve=False)
    return lay_over(base, over, choices)


def lay_over(base: Mapping[str, Any], extra: Mapping[str, Any], choices: Mapping[str, str]) -> DictConfig:
    """A checkpoint's config with other groups (`choices`) and other values (`extra`, nested) laid over it.

    Raises:
        ConfigError: a key that the config has not, or a group option that does not exist.
    """
    cfg = OmegaConf.create(dict(base))
    if choices:
        bundle = next((group for group in choices if group in BUNDLES), None)  # before composing
        if bundle is not None:
            raise ConfigError(
                f"{bundle}={choices[bundle]} cannot be laid over a checkpoint",
                expected="groups and keys of the checkpoint's config",
                fix="name its groups and values one by one, as in inference=slide data.batch_size=4",
            )
        other = compose([f"{group}={option}" for group, option in choices.items()])
        for group in choices:
            cfg[group] = other[group]
        if "data" in choices or "model" in choices:
            parts = str(base.get("name", "_")).split("_", 1)
            networks = choices.get("model", parts[-1])
            # Two networks that are merged are named in the task, and the model that no one chose is neither.
            merged = choices.get("task") == "panoptic"
            cfg.name = f"{choices.get('data', parts[0])}_{'panoptic' if merged else networks}"
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    _set_values(tree, extra, list(leaf_keys(tree)))
    return OmegaConf.create(tree)


def _set_values(tree: dict[str, Any], extra: Mapping[str, Any], known: list[str], prefix: str = "") -> None:
    """Sets values of `tree` in place; a mapping whose keys are no names, such as a label map, is replaced whole."""
    for key, value in extra.items():
        if key not in tree:
            raise unknown_key(f"{prefix}{key}", known)
        named_keys = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        if named_keys and isinstance(tree[key], dict):
            _set_values(tree[key], value, known, f"{prefix}{key}.")
        else:
            tree[key] = value
