"""From YAML files and overrides to one config tree; and errors that say what the user meant.

Imports nothing heavy: `--help` and `--cfg job` end here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segtrain.errors import ConfigError, closest, listed

VERSION_BASE = "1.3"
BUNDLES = ("experiment", "debug")
"""Groups that are no part of a run but values for several parts."""
COMMANDS = {
    "train": "train a model (the default command)",
    "evaluate": "score a checkpoint on a dataset's split",
    "predict": "segment a file, a folder, a glob or a video",
    "compare": "tell whether two evaluations differ: compare RUN_A RUN_B",
    "benchmark": "time data, training, evaluation, losses and start against the usual ways",
}


def config_dir() -> Path:
    """The folder of the YAML files: inside an installed wheel's package, else at the top of the source tree."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def groups(folders: Iterable[Path] = ()) -> dict[str, list[str]]:
    """Config groups and their options, by name; `folders` adds a user's own."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *folders):
        for file in root.glob("*/*.yaml"):
            if not file.name.startswith("_"):
                found.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


def run_id() -> str:
    """`2026-11-21_09-14-02-7f3a`: sorts by time, and two runs that start in one second differ."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"


def register_resolvers() -> None:
    """`${len:list}` counts classes; `${run_id:}` names a sweep's folder once per process."""
    OmegaConf.register_new_resolver("len", len, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True, use_cache=True)


def compose(overrides: Iterable[str] = (), command: str = "train") -> DictConfig:
    """The config that `python -m segtrain COMMAND OVERRIDES…` would run with.

    Raises:
        ConfigError: an override names a key, group or option that does not exist, with the nearest one that does.
    """
    overrides = list(overrides)
    register_resolvers()
    with translated(command, overrides):
        if GlobalHydra.instance().is_initialized():  # inside a run: same search path, --config-dir included
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration(command, overrides, run_mode=RunMode.RUN, from_shell=False)
        else:
            with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
                cfg = hydra.compose(command, overrides, return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        return named(cfg, choices)


def named(cfg: DictConfig, choices: Mapping[str, Any]) -> DictConfig:
    """The config without Hydra's own node, and with `name` = `<data>_<model>` where it was left open."""
    with open_dict(cfg):
        cfg.pop("hydra", None)
    if cfg.get("name", "") is None:
        cfg.name = f"{choices['data']}_{choices['model']}"
    return cfg


def leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a plain tree, branches included."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaf_keys(value, f"{prefix}{key}.")


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """The error for an override that names no key."""
    near = closest(key, known)
    return ConfigError(
        f"there is no config key '{key}'",
        expected="a key of the config: python -m segtrain --cfg job shows all",
        fix=f"did you mean {near}?" if near else None,
    )


@contextmanager
def translated(command: str, overrides: list[str]) -> Iterator[None]:
    """Turns Hydra's and OmegaConf's errors into ours."""
    for text in overrides:
        _refuse_no_key(text)
        _refuse_list_of_options(text)
    try:
        yield
    except MissingConfigException as error:
        raise _missing_option(error) from error
    except OverrideParseException as error:
        text = str(error.override)
        key, equals, value = text.partition("=")
        fix = f"quote a value with special characters: \"{key}='{value}'\"" if equals else f"for example {text}=VALUE"
        raise ConfigError(f"cannot read the override '{text}'", expected="key=value", fix=fix) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, command, overrides) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        options = groups()
        wrong = [o for o in overrides if (parts := o.split("=", 1))[0] in options and parts[-1] in ("null", "")]
        raise ConfigError(
            f"{listed(wrong) or 'a group'}: no option of the group is named",
            expected="\n".join(f"{o.split('=')[0]}={'|'.join(options[o.split('=')[0]])}" for o in wrong) or None,
        ) from error


def _refuse_no_key(text: str) -> None:
    """Hydra's parser takes `+=3`, and what comes after it ends in an assertion.

    Raises:
        ConfigError: an override without a key.
    """
    key, equals, _ = text.lstrip("+~").partition("=")
    if equals and not key.split("@")[0].strip():
        raise ConfigError(f"the override '{text}' has no key", expected="key=value")


def _refuse_list_of_options(text: str) -> None:
    """Hydra merges the options of `model=[unet,fcn]`, and ends in errors of its own where they are no names or none.

    Raises:
        ConfigError: a list for a part of a run, which has one; or, for bundles of values, a list of other things than
            names.
    """
    name, _, value = text.lstrip("+~").partition("=")
    group = name.split("@")[0]
    if not value.lstrip("= ").startswith("[") or ("/" not in group and group not in groups()):
        return
    try:
        options = OverridesParser.create().parse_override(text).value()
    except HydraException:
        return  # it is no override, which Hydra says better
    bundle = group in BUNDLES
    names = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not (bundle and names and options):
        wanted = f"names of the group '{group}' belong" if bundle else f"one option of the group '{group}' belongs"
        raise ConfigError(
            f"{text}: a list where {wanted}",
            expected=listed(groups().get(group, ()), 40) or None,
            fix=f"{group}=[NAME,NAME]" if bundle else f"{group}=NAME; one job per name: --multirun {group}=A,B",
        )


def _missing_option(error: MissingConfigException) -> ConfigError:
    missing = error.missing_cfg_file or ""
    group, _, option = missing.rpartition("/")
    if not group or error.options is None:
        return ConfigError(str(error).splitlines()[0])
    options = [name for name in error.options if not name.startswith("_")]
    near = closest(option, options)
    return ConfigError(
        f"there is no '{option}' in the group '{group}'",
        expected=listed(options, 40),
        fix=f"did you mean {group}={near}?" if near else None,
    )


def _explained(error: Exception, command: str, overrides: list[str]) -> ConfigError:
    lines = str(error).splitlines() or [type(error).__name__]
    key = re.search(r"Could not override '([^']+)'", lines[0])
    inner = re.search(r"Key '([^']+)' is not in struct", str(error.__cause__))
    known = known_keys(command, overrides) if key else []
    if key and inner and key.group(1) in known:  # a mapping, such as a label map, given as a whole is merged
        return ConfigError(
            f"{key.group(1)} has no key '{inner.group(1)}'",
            expected="keys that it has, because a mapping is merged into the one before",
            fix=f"to replace it: '~{key.group(1)}' '+{key.group(1)}={{…}}'",
        )
    if key:
        return unknown_key(key.group(1), known)
    if "Ambiguous value" in lines[0]:
        return ConfigError(lines[0].split("\n")[0], fix="to run one job per value add --multirun; a list is [a,b]")
    return ConfigError(lines[0], where=getattr(error, "full_key", None) or None)


def known_keys(command: str, overrides: list[str]) -> list[str]:
    """All keys and groups of the config as composed with those overrides that choose a group's option."""
    options = groups()
    chosen = [o for o in overrides if (parts := o.split("=", 1))[0] in options and parts[-1] in options[parts[0]]]
    tree = OmegaConf.to_container(compose(chosen, command), resolve=False)
    return [*leaf_keys(tree), *options]  # type: ignore[arg-type]
