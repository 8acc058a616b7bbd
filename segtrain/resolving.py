"""A config's values with all references resolved, and which of them come from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from segtrain import signatures, targets
from segtrain.errors import ConfigError

Plain = dict[str, Any]
WRITTEN_DOWN = ("name", "allow_targets", "data.classes", "model.backbone", "trainer.device", "trainer.monitor")
"""Keys whose text a run writes into its files and names folders by, so that it must be no secret."""


def environment_values(tree: Any) -> dict[str, str]:
    """Value -> name of the environment's variables that a config refers to, the longest value first."""
    text = str(tree)
    names = re.findall(r"oc\.env:\s*([A-Za-z_]\w*)\s*[,}]", text)
    if text.count("oc.env") > len(names):  # a computed or quoted name: it may be any
        names = list(os.environ)
    # Shorter values are no secrets, and would be found in every other word.
    values = {os.environ[name]: name for name in names if len(os.environ.get(name, "")) > 3}
    return dict(sorted(values.items(), key=lambda item: -len(item[0])))


def refuse_to_write_down(tree: Any, plain: Plain, hidden: dict[str, str]) -> None:
    """Raises a ConfigError where a value that is written into files comes from the environment."""
    for key in WRITTEN_DOWN:
        raw: Any = tree
        value: Any = plain
        for part in key.split("."):
            raw, value = (level.get(part) if isinstance(level, dict) else None for level in (raw, value))
        if any(secret in str(value) and secret not in str(raw) for secret in hidden):
            raise ConfigError(
                f"{key}={raw} takes its value from the environment",
                expected="text that may be read in every file of the run",
                fix=f"write the value itself: {key}=…",
            )


def resolved(cfg: DictConfig, nodes: Iterable[str]) -> Plain:
    """The config as plain data; where a wrong literal among `nodes` is why it cannot be had, the error names that."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        _check_literals(cfg, nodes)
        key = getattr(error, "full_key", None) or "config"
        if isinstance(error, InterpolationToMissingValueError):
            missing = str(error).split("'")[1].strip("${}") if "'" in str(error) else key
            raise ConfigError(f"{key} depends on a value that is not set", where=missing, fix=f"set {key}=…") from error
        found = (
            "refers to a key that does not exist" if isinstance(error, InterpolationKeyError) else "cannot be resolved"
        )
        # Objects keep their images' sizes: their augmentation has no crop for a window to follow.
        windows = key.startswith("inference.") and "augment.crop_size" in str(error)
        raise ConfigError(
            f"{key} {found}: {str(error).splitlines()[0]}",
            fix="inference=instances finds single objects; inference=slide needs an augment with crop_size"
            if windows
            else None,
        ) from error


def _check_literals(cfg: DictConfig, nodes: Iterable[str]) -> None:
    """A wrong literal, such as data.target=foo, is often why another key cannot be resolved: name it first."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in nodes:
        node = raw.get(name) or {}
        if isinstance(node.get("_target_"), str) and "${" not in node["_target_"]:
            known, _ = signatures.parameters(targets.resolve(node["_target_"], name, raw.get("allow_targets") or []))
            for key, value in node.items():
                if (
                    key in known
                    and not (isinstance(value, str) and "${" in value)
                    and not isinstance(value, dict | list)
                ):
                    signatures.check_value(value, known[key].annotation, f"{name}.{key}")
