"""Weights drawn by rule, and the inputs and figures that go with them (rules: tests/goldens/models.json)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "goldens" / "models.json").read_text())


@pytest.fixture(scope="session")
def wave() -> Callable[[int, int, int], Tensor]:
    """The input (1, C, H, W) of all recorded logits, float64."""

    def make(channels: int, height: int, width: int) -> Tensor:
        c = np.arange(channels)[:, None, None]
        i = np.arange(height)[:, None]
        j = np.arange(width)
        return torch.from_numpy(np.sin(0.1 * i + 0.2 * j + c) + 0.5 * np.cos(0.05 * i * (c + 1)))[None]

    return make


@pytest.fixture(scope="session")
def fill_by_key() -> Callable[[nn.Module], None]:
    """Draws every tensor from a generator seeded by its key, so that equal keys mean equal weights."""

    def draw(key: str, tensor: Tensor) -> Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.zeros_like(tensor)
        n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape))
        if key.endswith("running_var"):
            return torch.from_numpy(1 + 0.1 * np.abs(n))
        if key.endswith(("running_mean", ".bias")):
            return torch.from_numpy(0.1 * n)
        if n.ndim == 1:
            return torch.from_numpy((1 + 0.1 * n) * (0.2 if key.endswith("bn3.weight") else 1))
        return torch.from_numpy(n * np.sqrt(2 / np.prod(n.shape[1:])))

    def fill(model: nn.Module) -> None:
        model.load_state_dict({key: draw(key, tensor) for key, tensor in model.state_dict().items()})

    return fill


@pytest.fixture(scope="session")
def fill_by_order() -> Callable[[nn.Module, Callable[[], Any]], int]:
    """Draws weights layer by layer as `run` executes them, whatever their names; returns how many ran."""

    def fill(model: nn.Module, run: Callable[[], Any]) -> int:
        count = 0

        def draw(module: nn.Module, _: Any) -> None:
            nonlocal count
            rng = np.random.default_rng(7000 + count)
            count += 1

            def normal(like: Tensor) -> Tensor:
                return torch.from_numpy(rng.standard_normal(tuple(like.shape)))

            with torch.no_grad():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.copy_(1 + 0.1 * normal(module.weight))
                    module.bias.copy_(0.1 * normal(module.bias))
                    module.running_mean.copy_(0.1 * normal(module.bias))
                    module.running_var.copy_(1 + 0.1 * normal(module.bias).abs())
                    return
                spread = np.sqrt(2 / np.prod(module.weight.shape[1:]))
                module.weight.copy_(spread * normal(module.weight))
                if module.bias is not None:
                    module.bias.copy_(0.1 * normal(module.bias))

        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
        hooks = [m.register_forward_pre_hook(draw) for m in model.modules() if isinstance(m, kinds)]
        with torch.no_grad():
            run()
        for hook in hooks:
            hook.remove()
        return count

    return fill


@pytest.fixture(scope="session")
def check_logits() -> Callable[..., None]:
    """Compares logits (1, C, H, W) with recorded values at some points, their mean and their peak."""

    def check(logits: Tensor, golden: dict[str, Any], tolerance: float = 1e-9) -> None:
        classes = 4 if "values_first4_classes" in golden else 2
        recorded = torch.tensor(golden[f"values_first{classes}_classes"], dtype=torch.float64)
        rows, columns = torch.tensor(golden["points_yx"]).T
        scale = logits.abs().max().item()
        found = logits[0, :classes, rows, columns].T
        assert (found - recorded).abs().max() <= tolerance * scale
        assert logits.mean().item() == pytest.approx(golden["mean"], abs=tolerance * scale)
        if "abs_max" in golden:
            assert scale == pytest.approx(golden["abs_max"], rel=tolerance)
        if "argmax_hist" in golden:
            counts = torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1])
            assert counts.tolist() == golden["argmax_hist"]

    return check


@pytest.fixture(scope="session")
def key_digest() -> Callable[[nn.Module], str]:
    """SHA-256 of the sorted `key shape` lines of a state_dict."""

    def digest(model: nn.Module) -> str:
        lines = sorted(f"{key} {list(value.shape)}" for key, value in model.state_dict().items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    return digest
