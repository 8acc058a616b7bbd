"""Where a run writes: one folder, chosen once, with what is needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain.checkpoint import remove_leftovers, write_atomically
from segtrain.composition import run_id


class RunFolder:
    """The folder of one run.

    Args:
        command: train, evaluate or predict.
        path: given by the user (`hydra.run.dir=DIR`) or by a sweep; None: chosen by `choose`.
        overrides: the command line's, for `overrides.txt` and for saying how to resume.
    """

    def __init__(self, command: str, path: Path | None, overrides: list[str]) -> None:
        self.command = command
        self.path = path
        self.given = path is not None
        self.overrides = overrides

    def choose(self, name: str) -> Path:
        """The folder: the given one, else `outputs/<command>/<name>/<date>_<time>-<4 hex>`."""
        if self.path is None:
            self.path = Path("outputs") / self.command / name / run_id()
        return self.path

    def describe(self, cfg: DictConfig, versions: dict[str, str], device: str) -> None:
        """Writes `config.yaml`, `overrides.txt` and `env.json`, and sweeps away what a killed run left half-written."""
        assert self.path is not None
        remove_leftovers(self.path / "checkpoints")
        # Unresolved, so that a value taken from the environment stays a reference and is not written down.
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(cfg).encode())
        lines = "".join(f"{override}\n" for override in self.overrides)
        write_atomically(self.path / "overrides.txt", lines.encode())
        environment: dict[str, Any] = {
            "versions": versions,
            "device": device,
            "platform": platform.platform(),
            "python": sys.executable,
        }
        write_atomically(self.path / "env.json", (json.dumps(environment, indent=2) + "\n").encode())
        (self.path / "error.txt").unlink(missing_ok=True)  # of the interruption that this run goes on from

    def keep_error(self, text: str) -> None:
        """Leaves the error beside what the run wrote, if it came that far; a sweep's console scrolls away."""
        if self.path is not None and self.path.is_dir() and os.environ.get("RANK", "0") == "0":
            try:
                (self.path / "error.txt").write_text(text + "\n", encoding="utf-8")
            except OSError as error:  # a full disk may be the very thing to report, and the console has it
                sys.stderr.write(f"note: {self.path / 'error.txt'} cannot be written: {error.strerror}\n")

    def resume_line(self) -> str:
        """The command that continues this run."""
        kept = [o for o in self.overrides if not o.startswith(("trainer.resume=", "hydra.run.dir="))]
        words = [*kept, "trainer.resume=auto", f"hydra.run.dir={self.path}"]
        return "python -m segtrain " + " ".join(shlex.quote(word) for word in words)
