"""Image and mask files to arrays: one defined conversion for every mode that Pillow knows.

Images (`read_image`), turned upright by their EXIF orientation unless told otherwise:

| mode of the file                      | with channels=3                                        |
|---------------------------------------|--------------------------------------------------------|
| RGB                                   | as it is                                               |
| L                                     | repeated                                               |
| 1                                     | 0 and 255, repeated                                    |
| P                                     | its palette's colors, transparency dropped             |
| LA, PA, RGBA                          | alpha dropped (Pillow divides premultiplied colors)    |
| CMYK, YCbCr, LAB                      | Pillow's conversion to RGB                             |
| I;16, I;16B (9 to 16 bits, grey)      | float32: value * 255 / (2^bits - 1), repeated          |
| I (a 32-bit box for 16-bit values)    | float32: value / 257, repeated; refused beyond 65535   |
| RGB, RGBA, LA of 16 bits per channel  | 8 bits: Pillow decodes the high byte alone             |
| F                                     | refused: no range is declared                          |

With channels=1 the result is the luma of that RGB image (ITU-R 601-2), or the grey values themselves.

Masks (`read_mask`), never scaled and never turned by EXIF (a TIFF's own orientation is part of its decoding):

| mode of the file                      | values                                                 |
|---------------------------------------|--------------------------------------------------------|
| P, L                                  | as stored: palette indices, grey values                |
| 1                                     | 0 and 1                                                |
| LA, PA                                | as L and P, alpha dropped                              |
| I;16, I                               | uint16, int32                                          |
| RGB, RGBA                             | grey where the three channels are equal, else colors   |
| anything else                         | refused                                                |

Every file is decoded to its last byte here, so that a truncated one is found here. Only the formats of `FORMATS` are
decoded, by what a file holds and not by its name: Pillow's reader of PostScript runs a program. The usual color JPEGs
are decoded by `segtrain.data.jpeg`, to the same pixels.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from segtrain.data import jpeg
from segtrain.errors import DataError, SegtrainError

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may decode: the formats behind the endings that datasets look for."""
# Ours is an error that names the file, and Pillow's warning would stand before it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_REPLACE = "replace the file, or take its name out of the split"
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow spreads grey values of fewer than 8 bits over 0..255; a mask needs them as they are in the file.
_SPREAD = {"L;2": 85, "L;4": 17}


def read_image(
    path: Path,
    channels: Literal[1, 3] = 3,
    *,
    exif: Literal["apply", "ignore"] = "apply",
    max_pixels: int | None = None,
) -> np.ndarray:
    """The image as (H, W, channels) uint8, or float32 in [0, 255] for grey of more than 8 bits.

    `exif=ignore` leaves it as it is stored. `max_pixels` takes the place of Pillow's limit, which None keeps.

    Raises:
        DataError: missing, empty, truncated, not an image, too large, or of a kind that the table refuses.
    """
    return _decode(path, lambda image: _image_pixels(image, path, channels, exif == "apply"), max_pixels)


def read_mask(path: Path, *, keep_channels: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """The mask's file values (H, W) uint8, uint16 or int32, or its colors (H, W, 3) uint8.

    With `keep_channels` a three-channel file gives (H, W, 3) even where it is grey, for callers who can tell
    by their palette whether grey is a color or an index.

    Raises:
        DataError: missing, empty, truncated, not an image, too large, or of a kind that the table refuses.
    """
    return _decode(path, lambda image: _mask_pixels(image, path, keep_channels), max_pixels)


def read_alpha(path: Path, *, upright: bool = False, max_pixels: int | None = None) -> np.ndarray | None:
    """The alpha channel (H, W) uint8, 255 = opaque; None where the file has none.

    `upright` applies the EXIF orientation: for the alpha of an image, not of a mask.
    """

    def alpha(image: Image.Image) -> np.ndarray | None:
        if not image.has_transparency_data:
            return None
        image.load()
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return np.array(image.convert("RGBA").getchannel("A"))

    return _decode(path, alpha, max_pixels)


def read_size(path: Path, *, upright: bool = False, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) as the file's header says, no pixel decoded; `upright`: of an image turned by its EXIF.

    An orientation that a PNG tells after its pixels is not seen.

    Raises:
        DataError: missing, empty, not an image or too large.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        # A TIFF's size has its orientation in it already; PNG's own `getexif` would decode the pixels to look behind.
        exif = Image.Image.getexif(image) if upright and image.format != "TIFF" else {}
        turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)

    return _decode(path, size, max_pixels)


def _decode(path: Path, pixels_of: Callable[[Image.Image], T], max_pixels: int | None) -> T:
    """`pixels_of(image)`; whatever Pillow raises on a damaged file becomes an error that names it."""
    try:
        with _LIMIT.at_least(max_pixels), Image.open(path, formats=FORMATS) as image:
            _refuse_bomb(f"{image.width}x{image.height} pixels", image.width * image.height, path, max_pixels)
            return pixels_of(image)
    except (SegtrainError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        pixels = next(iter(re.findall(r"\d+", str(error))), "N")  # the first number that Pillow names is the size
        limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        raise _too_large(f"{pixels} pixels", path, limit, f"data.max_pixels={pixels}") from error
    except Exception as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(_reason(path, error), where=path, fix=_REPLACE) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, PermissionError | IsADirectoryError):
        return f"file cannot be opened: {error.strerror}"
    if path.stat().st_size == 0:
        return "file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"file is not an image that Pillow can read ({', '.join(FORMATS)})"
    return f"file is damaged: {error or type(error).__name__}"


class _Limit:
    """Raises Pillow's limit on pixels while files are read that may be larger.

    It is one limit for the whole process, and threads read side by side: the last of them puts it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.readers = 0
        self.kept: int | None = None

    @contextmanager
    def at_least(self, pixels: int | None) -> Iterator[None]:
        """Within, Pillow decodes up to `pixels`; None: as it would anyway."""
        if pixels is None:
            yield
            return
        with self.lock:
            if self.readers == 0:
                self.kept = Image.MAX_IMAGE_PIXELS
            self.readers += 1
            if Image.MAX_IMAGE_PIXELS is not None:
                Image.MAX_IMAGE_PIXELS = max(pixels, Image.MAX_IMAGE_PIXELS)
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if self.readers == 0:
                    Image.MAX_IMAGE_PIXELS = self.kept


_LIMIT = _Limit()


def _refuse_bomb(size: str, pixels: int, path: Path, limit: int | None) -> None:
    # Pillow refuses no less than twice its limit; by then a 24 kB file can ask for gigabytes.
    limit = Image.MAX_IMAGE_PIXELS if limit is None else limit
    if limit is not None and pixels > limit:
        raise _too_large(size, path, limit, f"data.max_pixels={pixels}")


def _too_large(size: str, path: Path, limit: int | None, override: str) -> DataError:
    return DataError(
        f"image is too large: {size}",
        where=path,
        expected=f"at most {limit or 0:,} pixels, a limit against small files that decode to gigabytes",
        fix=f"if you trust the file, set {override}; else replace it",
    )


def _image_pixels(image: Image.Image, path: Path, channels: int, upright: bool) -> np.ndarray:
    top = _top_value(image)
    if channels == 3 and (image.format, image.mode) == ("JPEG", "RGB") and not (upright and _is_turned(image)):
        pixels = jpeg.decoded(path.read_bytes(), image.height, image.width)
        if pixels is not None:
            return pixels
    image.load()
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in (*_DEEP_GREY, "I"):
        grey = _scaled(np.array(image), top, path)
        return np.repeat(grey[..., None], channels, axis=2)
    if image.mode == "F":
        raise DataError(
            "image holds floating-point values, whose range no file declares",
            where=path,
            expected="8 or 16 bits per channel",
            fix="scale the values yourself and save as 16-bit PNG or TIFF",
        )
    if image.mode in ("1", "L") and channels == 1:
        return np.array(image if image.mode == "L" else image.convert("L"))[..., None]
    if image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of the transparency it drops
    if image.mode != "RGB":  # Pillow would copy it
        image = image.convert("RGB")
    return np.array(image) if channels == 3 else np.array(image.convert("L"))[..., None]


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # as ImageOps.exif_transpose asks


def _top_value(image: Image.Image) -> int:
    """The largest value of a deep grey file: only TIFF declares fewer than 16 bits."""
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
    return 2 ** min(bits, 16) - 1


def _scaled(values: np.ndarray, top: int, path: Path) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > top:
        raise DataError(
            f"image holds values {low} to {high}",
            where=path,
            expected=f"0 to {top}",
            fix="scale the values yourself and save as 16-bit PNG or TIFF",
        )
    return values.astype(np.float32) * np.float32(255 / top)


def _mask_pixels(image: Image.Image, path: Path, keep_channels: bool) -> np.ndarray:
    raw = _raw_mode(image)
    values = np.array(image)
    if image.mode in ("P", "L", "1"):
        stored = values.astype(np.uint8, copy=False)
        return stored // np.uint8(_SPREAD[raw]) if raw in _SPREAD else stored
    if image.mode in _DEEP_GREY:
        return values.astype(np.uint16)
    if image.mode == "I":
        return values
    if image.mode in ("LA", "PA") and ";16" not in raw:
        return np.ascontiguousarray(values[..., 0])
    if image.mode in ("RGB", "RGBA") and ";16" not in raw:
        colors = np.ascontiguousarray(values[..., :3])
        return colors if keep_channels or not is_grey(colors) else np.ascontiguousarray(colors[..., 0])
    raise DataError(
        f"mask has mode {image.mode}" + (" with 16 bits per channel" if ";16" in raw else ""),
        where=path,
        expected="a one-channel or palette image of class values, or an 8-bit RGB image of class colors",
        fix="export the mask as PNG with class indices",
    )


def is_grey(colors: np.ndarray) -> bool:
    """Whether the three channels of (H, W, 3) are equal everywhere."""
    first = colors[..., 0]
    return np.array_equal(first, colors[..., 1]) and np.array_equal(first, colors[..., 2])


def _raw_mode(image: Image.Image) -> str:
    """How the values lie in the file, e.g. `L;4` behind mode L; known until the pixels are loaded."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return args if isinstance(args, str) else str(args[0] if args else "")
