"""Bad data end in one block with the file, what was found, what was expected and what to type: before the first step.

One row per fault of a dataset on disk, each made for real and run through the program's door.
"""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

FAST = (
    "debug=fast",
    "data=folder",
    "data.root=data",
    "model.base_channels=4",
    "model.depth=2",
    "data.crop_size=16",
    "data.batch_size=2",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.device=cpu",
)
CLASSES = "data.classes=[sky,road,tree]"
SIZE = (20, 24)  # height, width
Fault = Callable[[Path], None]


def mask(value: int = 2) -> np.ndarray:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[5:12, 4:20], pixels[14:, :] = 1, value
    return pixels


def write(path: Path, pixels: Any, **save: Any) -> None:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **save)


def dataset(root: Path, train: int = 6, val: int = 2) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            write(root / f"images/{split}/{i}.jpg", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
            write(root / f"masks/{split}/{i}.png", mask())


def cut(name: str) -> Fault:
    def fault(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])

    return fault


def replaced(name: str, content: bytes) -> Fault:
    return lambda root: (root / name).write_bytes(content) and None


def removed(*names: str) -> Fault:
    return lambda root: [(root / name).unlink() for name in names] and None


def painted(name: str, pixels: Any, **save: Any) -> Fault:
    return lambda root: write(root / name, pixels() if callable(pixels) else pixels, **save)


def all_masks(change: Callable[[np.ndarray], Any]) -> Fault:
    def fault(root: Path) -> None:
        for path in sorted(root.glob("masks/*/*.png")):
            write(path, change(np.array(Image.open(path))))

    return fault


def emptied(split: str) -> Fault:
    def fault(root: Path) -> None:
        for folder in ("images", "masks"):
            shutil.rmtree(root / folder / split)
            (root / folder / split).mkdir()

    return fault


def left(count: int) -> Fault:
    names = [
        f"{folder}/train/{i}.{end}" for i in range(count, 6) for folder, end in (("images", "jpg"), ("masks", "png"))
    ]
    return removed(*names)


def listed(*lines: str) -> Fault:
    def fault(root: Path) -> None:
        for split in ("train", "val"):
            for path in root.glob(f"images/{split}/*.jpg"):
                path.rename(root / "images" / f"{split}{path.name}")
            for path in root.glob(f"masks/{split}/*.png"):
                path.rename(root / "masks" / f"{split}{path.name}")
            for folder in ("images", "masks"):
                (root / folder / split).rmdir()
        (root / "train.txt").write_text("\n".join([*(f"train{i}" for i in range(6)), *lines]) + "\n")
        (root / "val.txt").write_text("val0\nval1\n")

    return fault


def turned(root: Path) -> None:
    """A camera's photo: pixels lie on their side, and a tag says so; the mask was drawn on the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write(root / "images/train/0.jpg", np.zeros((*SIZE, 3), np.uint8), exif=exif.tobytes())


def bomb(side: int) -> Fault:
    """Millions of pixels in a few kilobytes; at a side of 12000 Pillow would only warn."""
    return painted("images/train/0.jpg", lambda: Image.new("1", (side, side)), format="PNG")


def colors(values: np.ndarray) -> np.ndarray:
    return np.array([[0, 0, 0], [10, 200, 30], [90, 0, 255]], np.uint8)[values]


def pickled(root: Path) -> None:
    (root / "masks/train/0.png").unlink()
    np.save(root / "masks/train/0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


# id, fault, more overrides, exit code, what the block must say
FAULTS: list[tuple[str, Fault, str, int, str]] = [
    ("I1 image cut", cut("images/train/0.jpg"), "", 3, "images/train/0.jpg|damaged|replace the file"),
    ("I1 mask cut", cut("masks/train/0.png"), "", 3, "masks/train/0.png|damaged|replace the file"),
    ("I2 image empty", replaced("images/train/1.jpg", b""), "", 3, "images/train/1.jpg|empty (0 bytes)"),
    ("I2 mask empty", replaced("masks/val/1.png", b""), "", 3, "masks/val/1.png|empty (0 bytes)"),
    ("I2 text for image", replaced("images/val/0.jpg", b"hello"), "", 3, "images/val/0.jpg|not an image|PNG, JPEG"),
    ("I2 page for mask", replaced("masks/train/3.png", b"<html>404</html>"), "", 3, "masks/train/3.png|not an image"),
    ("I2 root", lambda root: shutil.rmtree(root), "", 3, "image folder not found|data/images|data.root"),
    (
        "I3 no mask",
        removed("masks/train/2.png", "masks/train/4.png"),
        "",
        3,
        "2 images without a mask: 2, 4|add what is",
    ),
    ("I3 no image", removed("images/val/1.jpg"), "", 3, "1 masks without an image: 1|add what is"),
    ("I4 size", painted("masks/train/0.png", mask()[:-3]), "", 3, "24x20|24x17|masks/train/0.png|re-export the mask"),
    ("I5 turned", turned, "", 3, "images/train/0.jpg is 20x24|is 24x20|data.exif=ignore"),
    (
        "I6 label",
        painted("masks/train/5.png", mask(37)),
        "",
        3,
        "masks/train/5.png|values 0 1 37|0..2, or 255|label_map={",
    ),
    (
        "I6 labels",
        all_masks(lambda m: m * 9),
        "",
        3,
        "6 of 6 masks cannot be used|0 9 18|data.label_map={0: 0, 9: 1, 18: 2}",
    ),
    (
        "I7 0 and 255",
        all_masks(lambda m: (m > 0) * np.uint8(255)),
        "data.classes=[background,crack]",
        3,
        "255 covers|e.g. data/masks/train/0.png|data.label_map={0: 0, 255: 1}",
    ),
    (
        "I8 colors",
        painted("masks/train/0.png", colors(mask())),
        "",
        3,
        "colors that are not in the palette|(10, 200, 30) x |data.palette=[[0,0,0],",
    ),
    (
        "I9 deep color mask",
        painted("masks/train/0.png", lambda: Image.new("CMYK", SIZE[::-1]), format="TIFF"),
        "",
        3,
        "mask has mode CMYK|masks/train/0.png|as PNG with class indices",
    ),
    (
        "I10 float image",
        painted("images/train/0.jpg", np.zeros(SIZE, np.float32), format="TIFF"),
        "",
        3,
        "floating-point|images/train/0.jpg|8 or 16 bits",
    ),
    ("I12 empty train", emptied("train"), "", 3, "split 'train' has no samples|images/NAME"),
    ("I12 empty val", emptied("val"), "", 3, "split 'val' has no samples"),
    ("I13 few images", left(3), "data.batch_size=8", 3, "has 3 images, one step needs 8|data.batch_size=3"),
    ("I16 bomb", bomb(12_000), "", 3, "images/train/0.jpg|12000x12000|at most 89,478,485|data.max_pixels=144000000"),
    ("I16 larger", bomb(14_000), "", 3, "images/train/0.jpg|196000000 pixels|89,478,485|data.max_pixels=196000000"),
    ("I16 small limit", lambda root: None, "data.max_pixels=100", 3, "24x20|at most 100 pixels|data.max_pixels=480"),
    ("I17 parent", listed("../../etc/passwd"), "", 3, "train.txt|'../../etc/passwd'|below data.root"),
    ("I17 absolute", listed("/etc/passwd"), "", 3, "train.txt|'/etc/passwd'|below data.root"),
    ("I17 drive", listed("..\\..\\secret"), "", 3, "train.txt|secret|below data.root"),
    ("I19 array for mask", pickled, "", 3, "1 images without a mask: 0"),
    (
        "I19 pickle as image",
        replaced("images/train/0.jpg", pickle.dumps({"a": 1})),
        "",
        3,
        "images/train/0.jpg|not an image",
    ),
    (
        "I19 postscript as image",
        replaced("images/train/0.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n%%EndComments\nshowpage\n"),
        "",
        3,
        "images/train/0.jpg|not an image",
    ),
]


@pytest.mark.parametrize(
    ("fault", "extra", "code", "block"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_bad_data(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, extra: str, code: int, block: str
) -> None:
    dataset(tmp_path / "data")
    fault(tmp_path / "data")
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: steps.append(1))
    done = door(*FAST, CLASSES, "data.num_workers=0", *extra.split())
    assert done.code == code, done.out + done.err
    assert done.err.startswith("error["), done.err  # and no warning of Pillow's before it
    assert "Traceback" not in done.err
    for part in block.split("|"):
        assert part in done.err
    assert not list(tmp_path.rglob("*.pt")), "nothing was trained"
    if block.startswith(("masks/", "split", "6 of 6", "255", "colors", "mask ")):
        assert not steps, "the scan of the masks is before the first step"


GOOD: list[tuple[str, Fault, str]] = [
    ("I5 as stored", turned, "data.exif=ignore"),
    ("I6 mapped", all_masks(lambda m: m * 9), "data.label_map={0:0,9:1,18:2}"),
    (
        "I7 mapped",
        all_masks(lambda m: (m > 0) * np.uint8(255)),
        "data.label_map={0:0,255:1} data.classes=[background,crack]",
    ),
    ("I8 palette", all_masks(colors), "data.palette=[[0,0,0],[10,200,30],[90,0,255]]"),
    ("I8 grey in three channels", all_masks(lambda m: np.dstack([m] * 3)), ""),
    ("I9 palette image", all_masks(lambda m: Image.fromarray(m, "P")), ""),
    ("I10 16 bits", painted("images/train/0.jpg", np.full(SIZE, 40_000, np.uint16), format="PNG"), ""),
    ("I11 CMYK", painted("images/train/0.jpg", lambda: Image.new("CMYK", SIZE[::-1])), ""),
    ("I11 LA", painted("images/train/0.jpg", lambda: Image.new("LA", SIZE[::-1]), format="PNG"), ""),
    ("I11 RGBA", painted("images/train/0.jpg", lambda: Image.new("RGBA", SIZE[::-1]), format="PNG"), ""),
    ("I11 1 bit", painted("images/train/0.jpg", lambda: Image.new("1", SIZE[::-1]), format="PNG"), ""),
    ("I11 grey", painted("images/train/0.jpg", lambda: Image.new("L", SIZE[::-1])), ""),
    ("I16 a limit below Pillow's that fits", lambda root: None, "data.max_pixels=480"),
]


@pytest.mark.parametrize(("change", "extra"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD])
def test_what_a_block_advises_and_what_the_documents_promise_trains(
    door: Any, tmp_path: Path, change: Fault, extra: str
) -> None:
    dataset(tmp_path / "data")
    change(tmp_path / "data")
    done = door(*FAST, CLASSES, "data.num_workers=0", *extra.split())
    assert done.code == 0, done.err


def test_max_pixels_lets_a_trusted_file_pass_and_leaves_pillows_limit_as_it_was(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "data")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own error would come beyond 200, the files have 480
    assert door(*FAST, CLASSES, "data.num_workers=0").code == 3
    done = door(*FAST, CLASSES, "data.num_workers=2", "data.max_pixels=480")
    assert done.code == 0, done.err
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_mask_that_the_scan_did_not_see_is_found_by_the_worker(door: Any, tmp_path: Path, workers: int) -> None:
    dataset(tmp_path / "data")
    write(tmp_path / "data/masks/train/5.png", mask(37))
    done = door(*FAST, CLASSES, "data.scan=1", f"data.num_workers={workers}")
    assert done.code == 3, done.out + done.err
    for part in ("masks/train/5.png", "values 0 1 37", "0..2, or 255", "data.label_map={"):
        assert part in done.err
    assert "masks checked 1/6" in done.out, "the scan passed"
    assert "Traceback" not in done.err


def test_no_loss_ever_sees_a_label_that_is_no_class(door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mode of mask file, augmented as hard as it goes, and every target that reaches the loss."""
    from segtrain.losses.combine import SegmentationLoss

    root = tmp_path / "data"
    dataset(root)
    write(root / "masks/train/0.png", Image.fromarray(mask(), "P"))
    write(root / "masks/train/1.png", np.dstack([mask()] * 3))
    write(root / "masks/train/2.png", mask().astype(np.uint16))
    write(root / "masks/train/3.png", mask(255))
    seen: set[int] = set()
    forward = SegmentationLoss.forward

    def noting(self: Any, outputs: Any, target: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.update(target.unique().tolist())
        return forward(self, outputs, target, *rest, **more)

    monkeypatch.setattr(SegmentationLoss, "forward", noting)
    argv = ["augment=strong", "data.num_workers=0", "trainer.epochs=6", "trainer.max_steps=18"]
    done = door(*FAST, CLASSES, *argv)
    assert done.code == 0, done.err
    assert seen == {0, 1, 2, 255}


def test_a_png_with_a_hostile_size_in_its_header_is_refused_before_it_is_decoded(door: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "data")

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    (tmp_path / "data/masks/train/0.png").write_bytes(content)
    done = door(*FAST, CLASSES, "data.num_workers=0")
    assert done.code == 3, done.err
    assert "masks/train/0.png" in done.err
    assert "image is too large" in done.err
    assert "data.max_pixels=" in done.err


def test_our_error_stands_alone_where_pillow_would_warn_of_a_bomb(program: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "data")
    bomb(12_000)(tmp_path / "data")
    done = program(*FAST, CLASSES, "data.num_workers=0", cwd=tmp_path)
    assert done.code == 3, done.err
    assert done.err.startswith("error[data] image is too large: 12000x12000"), done.err
    assert "Warning" not in done.err


def test_a_broken_exif_block_is_no_reason_to_stop(door: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "data")
    buffer = io.BytesIO()
    Image.new("RGB", SIZE[::-1]).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (tmp_path / "data/images/train/0.jpg").write_bytes(buffer.getvalue())
    done = door(*FAST, CLASSES, "data.num_workers=0")
    assert done.code in (0, 3), done.err
    assert "Traceback" not in done.err


def test_an_image_in_both_splits_is_told_when_the_run_starts(door: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    dataset(root)
    plain = door(*FAST, CLASSES, "hydra.run.dir=plain")
    shutil.copy(root / "images/train/3.jpg", root / "images/val/1.jpg")
    shared = door(*FAST, CLASSES, "hydra.run.dir=shared")
    assert (plain.code, shared.code) == (0, 0), shared.err
    assert "both train and val" not in plain.out
    assert "warning: 1 images are in both train and val, which flatters scores: " in shared.out
    overfit = door(*FAST, CLASSES, "data.val_split=train", "hydra.run.dir=same")
    assert "both train and val" not in overfit.out


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_run_from_a_cache_is_the_run_without(door: Any, tmp_path: Path, kind: str) -> None:
    from segtrain import checkpoint

    dataset(tmp_path / "data")
    for words, run in (([], "plain"), ([f"data.cache={kind}", "data.num_workers=2"], "cached")):
        done = door(*FAST, CLASSES, *words, f"hydra.run.dir={run}")
        assert done.code == 0, done.err
        assert ("cache  " in done.out) == (run == "cached")
    states = [checkpoint.load(tmp_path / run / "checkpoints/last.pt") for run in ("plain", "cached")]
    digests = [
        checkpoint.digest({key: state[key] for key in ("model", "optimizer", "rng", "sums")}) for state in states
    ]
    assert digests[0] == digests[1]
    assert (tmp_path / "outputs/cache").is_dir() == (kind == "disk")
