"""Generated files cost what real ones cost, and are what `data=folder` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.benchmark.samples import PROFILES, write_folder


@pytest.mark.parametrize(("key", "low", "high"), [("voc", 70e3, 140e3), ("cityscapes", 2.0e6, 3.4e6)])
def test_files_are_as_large_as_the_real_ones(tmp_path: Path, key: str, low: float, high: float) -> None:
    profile = PROFILES[key]
    pairs = write_folder(tmp_path, profile, 1)
    assert len(pairs) == 1
    image, mask = pairs[0]
    assert low < image.stat().st_size < high
    assert Image.open(image).size == Image.open(mask).size == profile.size
    assert Image.open(mask).mode == "P"
    found = set(np.unique(np.array(Image.open(mask))).tolist())
    assert len(found) > 3
    assert found <= {*range(profile.classes), 255}
    assert 255 in found
    assert (tmp_path / "train.txt").read_text().split() == ["000"]
    assert (tmp_path / "val.txt").read_text().split() == ["001"]
