"""The fast way to decode a JPEG gives what Pillow gives, and nothing where Pillow finds a file damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segtrain.data import jpeg
from segtrain.data.reading import read_image
from segtrain.errors import DataError

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"quality": 85},
    "full color": {"quality": 92, "subsampling": 0},
    "half color": {"quality": 70, "subsampling": 1},
    "restarts": {"quality": 60, "restart_marker_blocks": 3},
    "optimized": {"optimize": True},
    "rgb": {"keep_rgb": True},
    "profile and comment": {"icc_profile": bytes(range(256)) * 300, "comment": b"\xff\xd9 is no end here"},
    "thumbnail": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0\xff\xd8\xff\xd9"},
}


def photo(height: int = 67, width: int = 90) -> np.ndarray:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def encoded(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo()).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray | None:
    """None: it finds the file damaged, or no JPEG of three colors."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.array(image) if image.mode == "RGB" else None
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    data = encoded(**KINDS[kind])
    pixels = jpeg.decoded(data, 67, 90)
    assert pixels is not None
    expected = by_pillow(data)
    assert expected is not None
    assert np.array_equal(pixels, expected)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_progressive_files_and_other_sizes_are_left_to_pillow() -> None:
    assert jpeg.decoded(encoded(progressive=True), 67, 90) is None
    assert jpeg.decoded(encoded(), 90, 67) is None
    assert jpeg.decoded(b"", 67, 90) is None
    assert jpeg.decoded(encoded(), 2**16, 2**16) is None


@pytest.mark.parametrize("kind", ["plain", "restarts"])
def test_no_file_is_decoded_that_lacks_its_end(kind: str) -> None:
    data = encoded(**KINDS[kind])
    assert not any(jpeg.is_one_whole_scan(data[:length]) for length in range(len(data)))


@pytest.mark.parametrize("kind", ["plain", "full color", "restarts", "optimized"])
def test_what_pillow_refuses_is_refused_and_the_rest_is_equal(kind: str) -> None:
    """Random damage: bytes changed one by one, runs overwritten, pieces lost."""
    data, rng = encoded(**KINDS[kind]), np.random.default_rng(len(kind))
    taken = refused = 0
    for number in range(240):
        damaged, at = bytearray(data), int(rng.integers(2, len(data) - 40))
        if number % 3 == 0:
            for place in rng.integers(2, len(data), 3):
                damaged[place] = int(rng.integers(256))
        elif number % 3 == 1:
            damaged[at : at + 20] = rng.bytes(20)
        else:
            del damaged[at : at + int(rng.integers(1, 500))]
        expected = by_pillow(bytes(damaged))
        if expected is None:
            refused += 1
        found = jpeg.decoded(bytes(damaged), *(photo().shape[:2] if expected is None else expected.shape[:2]))
        if found is not None:
            taken += 1
            assert expected is not None
            assert np.array_equal(found, expected)
    assert taken > 60  # of both kinds enough to mean something
    assert refused > 10


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_read_image_turns_as_without_the_fast_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, exif: Any
) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(exif=tags))
    fast = read_image(path, exif=exif)
    monkeypatch.setattr(jpeg, "is_one_whole_scan", lambda data: False)
    assert np.array_equal(fast, read_image(path, exif=exif))


def test_read_image_takes_the_fast_way_and_says_what_pillow_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded()[:-300])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)
    path.write_bytes(encoded())
    monkeypatch.setattr(Image.Image, "load", None)
    assert read_image(path).shape == (67, 90, 3)
