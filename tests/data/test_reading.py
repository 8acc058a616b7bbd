"""Every mode has one conversion, every damaged file is named, no label value is changed on the way in."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.reading import read_alpha, read_image, read_mask, read_size
from segtrain.errors import DataError

ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


def png(path: Path, depth: int, kind: int, rows: list[bytes], size: tuple[int, int]) -> Path:
    """A PNG written by hand: Pillow cannot save 2-bit grey or 16-bit RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def tiff_12_bits(path: Path, first: int, second: int) -> Path:
    """A grey TIFF of two pixels of 12 bits."""
    tags = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 3),
        (339, 1),
    ]
    pixels = bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255, 0])
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + pixels + struct.pack("<H", len(tags)) + entries + b"\0" * 4)
    return path


# --- images ---------------------------------------------------------------------------------------


def test_rgb_is_read_as_it_is(put: Any, picture: np.ndarray) -> None:
    image = read_image(put("a.png", picture))
    assert image.dtype == np.uint8
    assert np.array_equal(image, picture)
    image[0, 0] = 0  # transforms write in place: the array must own its memory


def test_grey_is_repeated_and_one_bit_is_black_and_white(put: Any, picture: np.ndarray) -> None:
    grey = picture[..., 0]
    assert np.array_equal(read_image(put("l.png", grey)), np.repeat(grey[..., None], 3, 2))
    bits = grey > 100
    assert np.array_equal(read_image(put("1.png", bits)), np.repeat(bits[..., None] * np.uint8(255), 3, 2))
    assert np.array_equal(read_image(put("1.png", bits), 1), bits[..., None] * np.uint8(255))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_gives_its_colors_whatever_is_transparent(put: Any, transparency: Any) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    extra = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = read_image(put("p.png", image, **extra))
    assert pixels.tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


def test_alpha_is_dropped_without_touching_the_colors(put: Any, picture: np.ndarray) -> None:
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[:, 4:] = 130
    rgba = np.dstack([picture, alpha])
    assert np.array_equal(read_image(put("rgba.png", rgba)), picture)
    grey_alpha = np.dstack([picture[..., 0], alpha])
    assert np.array_equal(read_image(put("la.png", grey_alpha)), np.repeat(picture[..., :1], 3, 2))


def test_premultiplied_alpha_is_divided_out(put: Any) -> None:
    stored = np.zeros((1, 2, 4), np.uint8)
    stored[0] = [[50, 100, 25, 128], [7, 8, 9, 255]]
    path = put("a.tif", stored)
    straight = struct.pack("<HHIH", 338, 3, 1, 2)  # ExtraSamples: 2 is straight alpha, 1 premultiplied
    assert straight in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(straight, struct.pack("<HHIH", 338, 3, 1, 1)))
    assert np.abs(read_image(path)[0].astype(int) - [[99, 199, 49], [7, 8, 9]]).max() <= 1


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.tif"), ("YCbCr", "a.tif"), ("LAB", "a.tif")])
def test_print_and_video_modes_are_converted_by_pillow(put: Any, picture: np.ndarray, mode: str, name: str) -> None:
    image = (
        Image.frombytes("LAB", (9, 6), picture.tobytes()) if mode == "LAB" else Image.fromarray(picture).convert(mode)
    )
    path = put(name, image)
    opened = Image.open(path)
    assert opened.mode == mode
    assert np.array_equal(read_image(path), np.array(opened.convert("RGB")))


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "<u2"), ("little.tif", "<u2"), ("big.tif", ">u2")])
def test_sixteen_bits_keep_their_levels(put: Any, name: str, dtype: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65535
    mode = "I;16B" if dtype == ">u2" else "I;16"
    path = put(name, Image.frombytes(mode, (64, 64), values.astype(dtype).tobytes()))
    image = read_image(path)
    assert image.dtype == np.float32
    assert image.shape == (64, 64, 3)
    np.testing.assert_allclose(image[..., 0], values / 257.0, rtol=1e-6)
    assert len(np.unique(image)) == 4096, "Image.convert would leave 17 levels"
    assert image.max() == 255.0


def test_a_tiff_of_twelve_bits_is_scaled_by_twelve_bits(tmp_path: Path) -> None:
    image = read_image(tiff_12_bits(tmp_path / "a.tif", 4095, 2048), 1)
    np.testing.assert_allclose(image[0, :, 0], [255.0, 2048 * 255 / 4095], rtol=1e-6)


def test_thirty_two_bits_hold_sixteen_or_are_refused(put: Any) -> None:
    path = put("ok.tif", np.array([[0, 257, 65535]], np.int32))
    assert Image.open(path).mode == "I"
    np.testing.assert_allclose(read_image(path, 1)[0, :, 0], [0, 1, 255], rtol=1e-6)
    with pytest.raises(DataError, match="values 0 to 65536"):
        read_image(put("wide.tif", np.array([[0, 65536]], np.int32)))
    with pytest.raises(DataError, match="values -1 to 5"):
        read_image(put("negative.tif", np.array([[-1, 5]], np.int32)))


def test_floating_point_is_refused(put: Any) -> None:
    with pytest.raises(DataError, match="floating-point") as caught:
        read_image(put("f.tif", np.array([[0.5]], np.float32)))
    assert "f.tif" in str(caught.value)


def test_one_channel_is_the_luma_of_the_rgb_image(put: Any, picture: np.ndarray) -> None:
    path = put("a.png", picture)
    luma = picture @ np.array([0.299, 0.587, 0.114])
    grey = read_image(path, 1)
    assert grey.shape == (6, 9, 1)
    assert np.abs(grey[..., 0] - luma).max() <= 1
    palette = put("p.png", Image.fromarray(picture).quantize(8))
    expected = Image.fromarray(read_image(palette)).convert("L")
    assert np.array_equal(read_image(palette, 1)[..., 0], np.array(expected))


@pytest.mark.parametrize("number", ORIENTED)
def test_images_are_turned_upright_and_masks_are_not(put: Any, picture: np.ndarray, number: int) -> None:
    exif = orientation(number)
    upright = ORIENTED[number](picture)
    assert np.array_equal(read_image(put("a.png", picture, exif=exif)), upright)
    deep = picture[..., 0].astype(np.uint16) * 257
    assert np.array_equal(read_image(put("deep.png", deep, exif=exif), 1)[..., 0], upright[..., 0])
    assert np.array_equal(read_mask(put("m.png", picture[..., 0], exif=exif)), picture[..., 0])
    rgba = np.dstack([picture, picture[..., 0]])
    path = put("rgba.png", rgba, exif=exif)
    assert np.array_equal(read_alpha(path, upright=True), upright[..., 0])
    assert np.array_equal(read_alpha(path), picture[..., 0])


@pytest.mark.parametrize("number", ORIENTED)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_header_says_the_size_that_reading_gives(put: Any, picture: np.ndarray, name: str, number: int) -> None:
    path = put(name, picture, exif=orientation(number))
    assert read_size(path, upright=True) == read_image(path).shape[:2]
    assert read_size(path) == read_image(path, exif="ignore").shape[:2]
    assert read_size(path) == read_mask(path, keep_channels=True).shape[:2]


def test_a_size_needs_no_pixel(tmp_path: Path, put: Any) -> None:
    path = put("a.png", np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    assert read_size(path, upright=True) == (60, 90)
    with pytest.raises(DataError):
        read_image(path)


@pytest.mark.parametrize("shape", [(6, 9, 3), (6, 9)])
def test_arrays_may_be_written_to(put: Any, picture: np.ndarray, shape: tuple[int, ...]) -> None:
    path = put("a.png", picture.reshape(6, -1)[:, : 9 * (shape[2:] or (1,))[0]].reshape(shape))
    for array in (read_image(path), read_image(path, 1), read_mask(path, keep_channels=True)):
        array += 1


# --- masks ----------------------------------------------------------------------------------------


def test_palette_masks_are_read_as_indices(put: Any) -> None:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(indices, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    path = put("p.png", image)
    assert np.array_equal(read_mask(path), indices)
    assert not np.array_equal(np.array(Image.open(path).convert("L")), indices), "luminance is not the index"


def test_grey_and_one_bit_masks_keep_their_values(put: Any) -> None:
    values = np.array([[0, 1, 7], [37, 254, 255]], np.uint8)
    for name in ("a.png", "a.bmp", "a.tif"):
        mask = read_mask(put(name, values))
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, values)
    assert read_mask(put("1.png", values > 5)).tolist() == [[0, 0, 1], [1, 1, 1]]
    assert np.array_equal(read_mask(put("la.png", np.dstack([values, values]))), values)


@pytest.mark.parametrize(("depth", "row"), [(2, 0b00011011), (4, 0x3F)])
def test_grey_of_few_bits_is_not_spread(tmp_path: Path, depth: int, row: int) -> None:
    expected = {2: [0, 1, 2, 3], 4: [3, 15]}[depth]
    path = png(tmp_path / "a.png", depth, 0, [bytes([row])], (len(expected), 1))
    assert np.array(Image.open(path)).max() == 255, "Pillow spreads the values"
    assert read_mask(path).tolist() == [expected]


def test_wide_masks_keep_their_values(put: Any) -> None:
    values = np.array([[0, 255, 256, 65535]])
    for name in ("a.png", "a.tif"):
        mask = read_mask(put(name, values.astype(np.uint16)))
        assert mask.dtype == np.uint16
        assert np.array_equal(mask, values)
    wide = read_mask(put("i.tif", (values * 1000 - 1).astype(np.int32)))
    assert np.array_equal(wide, values * 1000 - 1)


def test_rgb_masks_are_grey_or_colors(put: Any, picture: np.ndarray) -> None:
    grey = picture[..., 0]
    opaque = np.full_like(grey, 255)
    for name, channels in (("rgb.png", [grey] * 3), ("rgba.png", [grey] * 3 + [opaque])):
        path = put(name, np.dstack(channels))
        assert np.array_equal(read_mask(path), grey)
        assert np.array_equal(read_mask(path, keep_channels=True), np.dstack([grey] * 3))
    assert np.array_equal(read_mask(put("color.png", picture)), picture)
    one_off = np.dstack([grey] * 3)
    one_off[-1, -1, 2] ^= 1
    assert read_mask(put("one.png", one_off)).shape == (6, 9, 3)


def test_masks_whose_values_would_change_are_refused(put: Any, tmp_path: Path) -> None:
    # Pillow keeps the high byte of 16-bit RGB: class 1 would become 0.
    deep = png(tmp_path / "deep.png", 16, 2, [b"\0\1" * 3], (1, 1))
    with pytest.raises(DataError, match="mode RGB with 16 bits per channel"):
        read_mask(deep)
    for path in (put("f.tif", np.array([[1.0]], np.float32)), put("c.tif", Image.new("CMYK", (2, 2)))):
        with pytest.raises(DataError, match="mask has mode") as caught:
            read_mask(path)
        assert "export the mask as PNG" in str(caught.value)


def test_no_alpha_is_none(put: Any, picture: np.ndarray) -> None:
    assert read_alpha(put("a.png", picture)) is None
    assert read_alpha(put("rgba.png", np.dstack([picture, picture[..., 1]]))) is not None


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_file_that_is_no_image_is_named_with_the_reason(tmp_path: Path, read: Any) -> None:
    empty, text, folder = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "folder.png"
    empty.touch()
    text.write_text("hello")
    folder.mkdir()
    for path, reason in (
        (empty, "file is empty (0 bytes)"),
        (text, "not an image that Pillow can read"),
        (tmp_path / "gone.png", "file not found"),
        (folder, "file cannot be opened"),
    ):
        with pytest.raises(DataError) as caught:
            read(path)
        assert reason in caught.value.found
        assert caught.value.where == str(path)
        assert caught.value.fix


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif", "bmp"])
def test_a_truncated_file_is_never_half_an_image(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    whole, path = buffer.getvalue(), tmp_path / f"a.{kind}"
    path.write_bytes(whole)
    expected = read_image(path)
    refused = 0
    for length in range(1, len(whole), 13):
        path.write_bytes(whole[:length])
        try:
            image = read_image(path)
        except DataError as error:
            refused += error.where == str(path)
        else:
            assert np.array_equal(image, expected), f"{length} of {len(whole)} bytes read as an image"
    assert refused > len(whole) // 13 * 0.9


def test_a_flipped_byte_in_a_png_is_named(tmp_path: Path, put: Any, picture: np.ndarray) -> None:
    path = put("a.png", picture)
    whole = bytearray(path.read_bytes())
    whole[60] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match="file is damaged"):
        read_image(path)


@pytest.mark.parametrize("limit", [40, 20])
def test_decompression_bombs_are_errors_also_where_pillow_only_warns(
    put: Any, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = put("a.png", picture)  # 54 pixels: 40 is the range of the warning, 20 that of Pillow's own error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, read_mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DataError, match="too large") as caught:
                read(path)
        assert str(path) in str(caught.value)
