"""Files for dataset tests: made on the spot, each small enough to see through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """`put("a/b.png", array, **save)` writes an image below tmp_path; an array of (H, W, 3) is RGB."""

    def write(name: str, pixels: Any, mode: str | None = None, **save: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
        image = image if mode is None else image.convert(mode)
        image.save(path, **save)
        return path

    return write


@pytest.fixture
def texts(tmp_path: Path) -> Put:
    """`texts("train.txt", "a", "b")` writes a list below tmp_path."""

    def write(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """Figures as the publishers of the datasets give them."""
    return json.loads((Path(__file__).parent / "published.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def picture() -> np.ndarray:
    """A small RGB image (6, 9, 3) in which every pixel differs."""
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
