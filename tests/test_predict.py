"""`predict`: masks, overlays and areas for files, folders and globs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from segtrain.data.reading import read_image
from segtrain.experiment import from_checkpoint
from segtrain.pictures import VOID


def picture(path: Path, size: tuple[int, int] = (40, 24), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    return path


def results(folder: Path) -> list[str]:
    kinds = {"masks": ".png", "overlays": ".jpg", "areas": ".json"}
    found = {
        kind: sorted(
            p.relative_to(folder / kind).as_posix().removesuffix(suffix) for p in (folder / kind).rglob(f"*{suffix}")
        )
        for kind, suffix in kinds.items()
    }
    assert found["masks"] == found["overlays"] == found["areas"]
    return found["masks"]


def test_as_its_own_process_on_one_file(program: Any, checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "dog.jpg")
    done = program("predict", f"checkpoint={checkpoint}", "input=dog.jpg", cwd=tmp_path)
    assert done.code == 0, done.err
    (folder,) = tmp_path.glob("outputs/predict/shapes_unet_small/*")
    assert results(folder) == ["dog"]
    relative = folder.relative_to(tmp_path)
    for line in (
        f"masks: {relative / 'masks'}",
        f"areas: {relative / 'areas'}",
        f"metrics: {relative / 'metrics.json'}",
    ):
        assert line in done.out.splitlines()


IMAGES = {
    "a.png": {"mode": "RGB"},
    "grey.png": {"mode": "L"},
    "clear.png": {"mode": "RGBA"},
    "palette.png": {"mode": "P"},
    "odd.bmp": {"size": (37, 21)},
    "tiny.png": {"size": (1, 1)},
    "deep/er/dog.jpg": {},
    "deep/dog.jpg": {"seed": 1},
    "deep/dog.png": {"seed": 2},
    "dots.in.name.webp": {"seed": 3},
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, how in IMAGES.items():
        picture(tmp_path / "photos" / name, **how)  # type: ignore[arg-type]
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._a.png").write_bytes(b"left by macOS")
    return tmp_path / "photos"


def test_a_folder_tree_of_all_kinds_of_images(door: Any, checkpoint: Path, tree: Path, tmp_path: Path) -> None:
    done = door("predict", f"checkpoint={checkpoint}", "input=photos", "output=out", "hydra.run.dir=run")
    assert done.code == 0, done.err
    names = {
        "a": "a.png",
        "grey": "grey.png",
        "clear": "clear.png",
        "palette": "palette.png",
        "odd": "odd.bmp",
        "tiny": "tiny.png",
        "deep/er/dog": "deep/er/dog.jpg",
        "deep/dog_jpg": "deep/dog.jpg",
        "deep/dog_png": "deep/dog.png",
        "dots.in.name": "dots.in.name.webp",
    }
    out = tmp_path / "out"
    assert results(out) == sorted(names)
    segmenter = from_checkpoint(checkpoint)
    totals = dict.fromkeys(segmenter.classes, 0)
    for result, name in names.items():
        image = read_image(tree / name)
        wanted = segmenter.predict(image)
        with Image.open(out / "masks" / f"{result}.png") as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.array(mask), wanted), name
            colors = np.array(mask.getpalette()).reshape(-1, 3)
            assert colors[:5].tolist() == segmenter.palette
            assert len(colors) < 256 or tuple(colors[255]) == VOID
        with Image.open(out / "overlays" / f"{result}.jpg") as overlay:
            assert overlay.size == (image.shape[1], image.shape[0])
        areas = json.loads((out / "areas" / f"{result}.json").read_text())
        assert areas["image"] == str(Path("photos") / name)
        assert areas["size"] == list(wanted.shape)
        for index, label in enumerate(segmenter.classes):
            assert areas["classes"][label]["pixels"] == (wanted == index).sum()
            totals[label] += areas["classes"][label]["pixels"]
        assert sum(entry["pixels"] for entry in areas["classes"].values()) == wanted.size
        assert sum(entry["share"] for entry in areas["classes"].values()) == pytest.approx(1)
    summary = json.loads((tmp_path / "run/metrics.json").read_text())
    assert summary == {"images": len(names), "pixels": totals}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.png", ["a", "clear", "grey", "palette", "tiny"]),
        ("photos/deep/dog.*", ["dog_jpg", "dog_png"]),
        ("photos/**/*.jpg", ["dog", "er/dog"]),
        ("photos/od?.bmp", ["odd"]),
    ],
)
def test_globs(door: Any, checkpoint: Path, tree: Path, tmp_path: Path, pattern: str, names: list[str]) -> None:
    done = door("predict", f"checkpoint={checkpoint}", f"input='{pattern}'", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert results(tmp_path / "run") == names


@pytest.mark.parametrize("source", ["empty", "nowhere", "'nowhere/*.jpg'", "texts"])
def test_nothing_to_predict(door: Any, checkpoint: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    done = door("predict", f"checkpoint={checkpoint}", f"input={source}", "hydra.run.dir=run")
    assert done.code == 3
    assert f"error[data] no images found\n  where     {source.strip(chr(39))}\n" in done.err
    assert ".png" in done.err


def test_two_images_with_one_result_are_refused_and_not_lost(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("dog.jpg", "dog.png", "dog_png.bmp"):
        picture(tmp_path / "photos" / name)
    done = door("predict", f"checkpoint={checkpoint}", "input=photos", "hydra.run.dir=run")
    assert done.code == 3
    assert "two images would have the result 'dog_png'" in done.err
    assert str(Path("photos") / "dog_png.bmp") in done.err


def test_a_damaged_image_is_named(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(picture(tmp_path / "dog.jpg").read_bytes()[:300])
    done = door("predict", f"checkpoint={checkpoint}", "input=broken.jpg", "hydra.run.dir=run")
    assert done.code == 3
    assert "where     broken.jpg" in done.err


def test_opacity_and_protocol(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    argv = ("predict", f"checkpoint={checkpoint}", "input=a.png")
    assert door(*argv, "hydra.run.dir=clear", "opacity=0").code == 0
    with Image.open(tmp_path / "clear/overlays/a.jpg") as overlay, Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "same.jpg", quality=92)
        with Image.open(tmp_path / "same.jpg") as wanted:
            assert np.array_equal(np.array(overlay), np.array(wanted))
    done = door(
        *argv, "hydra.run.dir=slide", "inference=slide", "inference.window_size=16", "inference.window_stride=8"
    )
    assert done.code == 0, done.err
    over = {"inference": {"window_size": 16, "window_stride": 8}}
    segmenter = from_checkpoint(checkpoint, choices={"inference": "slide"}, over=over)
    with Image.open(tmp_path / "slide/masks/a.png") as mask:
        assert np.array_equal(np.array(mask), segmenter.predict(read_image(tmp_path / "a.png")))


# --- without a checkpoint ----------------------------------------------------------------------------------------


def test_published_weights_by_path(door: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()
    torch.save(network.state_dict(), tmp_path / "lraspp.pth")
    picture(tmp_path / "dog.png", size=(48, 40))
    done = door("predict", "model=lraspp", "model.weights=lraspp.pth", "input=dog.png", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "model  loaded 319/319" in done.out
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = torch.from_numpy(read_image(tmp_path / "dog.png")) / 255
    with torch.inference_mode():
        wanted = network(((image - mean) / std).permute(2, 0, 1)[None])["out"].argmax(1)[0]
    with Image.open(tmp_path / "run/masks/dog.png") as mask:
        agreed = (np.array(mask) == wanted.numpy()).mean()
    assert agreed > 0.99  # the two resize in another order of additions
    areas = json.loads((tmp_path / "run/areas/dog.json").read_text())
    assert list(areas["classes"])[:3] == ["background", "aeroplane", "bicycle"]


@pytest.mark.parametrize("weights", [[], ["model.weights=none"], ["model.weights=imagenet"]])
def test_without_trained_weights_there_is_nothing_to_predict_with(
    door: Any, tmp_path: Path, weights: list[str]
) -> None:
    picture(tmp_path / "dog.png")
    done = door("predict", "model=lraspp", *weights, "input=dog.png", "hydra.run.dir=run")
    assert done.code == 2
    assert "error[config] nothing trained: checkpoint is not set" in done.err
    assert "model.weights=torchvision" in done.err
    assert not (tmp_path / "run" / "masks").exists()


def test_missing_and_misfitting_weights(door: Any, tmp_path: Path) -> None:
    picture(tmp_path / "dog.png")
    done = door("predict", "model=lraspp", "model.weights=nowhere.pth", "input=dog.png", "hydra.run.dir=run")
    assert (done.code, "no such weights file" in done.err) == (4, True)
    torch.save({"classifier.weight": torch.zeros(1)}, tmp_path / "other.pth")
    done = door("predict", "model=lraspp", "model.weights=other.pth", "input=dog.png", "hydra.run.dir=run")
    assert (done.code, "do not fit the network" in done.err) == (4, True)


# --- what is there already ---------------------------------------------------------------------------------------


def test_a_datasets_own_masks_are_not_overwritten(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "cracks" / "images" / f"{number:02}.jpg", seed=number)
        picture(tmp_path / "cracks" / "masks" / f"{number:02}.png", mode="L", seed=number)
    picture(tmp_path / "cracks" / "images" / "new.jpg")
    before = {path: path.read_bytes() for path in (tmp_path / "cracks").rglob("*") if path.is_file()}
    argv = ("predict", f"checkpoint={checkpoint}", "input=cracks/images", "hydra.run.dir=run")
    done = door(*argv, "output=cracks")
    assert done.code == 2
    assert "error[config] 12 files that predict did not write would be overwritten" in done.err
    assert f"where     {Path('cracks/masks/00.png')}\n" in done.err
    assert "11.png" not in done.err
    assert "and 2 more" in done.err
    assert "output=DIR" in done.err
    assert {path: path.read_bytes() for path in (tmp_path / "cracks").rglob("*") if path.is_file()} == before
    # The run folder is where results go without output=DIR.
    done = door("predict", f"checkpoint={checkpoint}", "input=cracks/images", "hydra.run.dir=cracks")
    assert (done.code, "12 files" in done.err) == (2, True)
    # JSON of the user's own beside them does not make them ours.
    (tmp_path / "cracks" / "areas").mkdir(exist_ok=True)
    for number in range(12):
        (tmp_path / "cracks" / "areas" / f"{number:02}.json").write_text('{"area": 3}')
    assert "24 files" in door(*argv, "output=cracks").err


def test_results_of_an_earlier_call_are_replaced(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    argv = ("predict", f"checkpoint={checkpoint}", "output=out")
    assert door(*argv, "input=photos", "hydra.run.dir=one").code == 0
    (tmp_path / "out/masks/a.png").write_bytes(b"half-written")  # as a killed run leaves it
    done = door(*argv, "input=photos", "hydra.run.dir=two")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.size == (40, 24)
    # But never the image that is being read.
    before = (tmp_path / "out/masks/a.png").read_bytes()
    done = door(*argv, "input=out/masks/a.png", "hydra.run.dir=three")
    assert (done.code, "1 files that predict did not write" in done.err) == (2, True)
    assert (tmp_path / "out/masks/a.png").read_bytes() == before


def test_one_folder_for_photos_and_results(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / "deep" / "masks" / "b.png")
    argv = ("predict", f"checkpoint={checkpoint}", "output=photos")
    for source in ("photos", "./photos", "'photos/**/*.*'"):
        done = door(*argv, f"input={source}", "hydra.run.dir=run")
        assert done.code == 0, done.err
        assert results(tmp_path / "photos") == ["a", "deep/masks/b"]
    assert "images 2 on cpu, 4 results of predict passed over" in done.out
    done = door(*argv, "input=photos/masks", "hydra.run.dir=run")
    assert done.code == 3
    assert "no images found but 2 in masks of photos, where results go" in done.err


@pytest.mark.parametrize("command", ["predict input=a.png", "evaluate"])
def test_the_folder_of_a_training_is_not_written_into(door: Any, trained: Any, tmp_path: Path, command: str) -> None:
    picture(tmp_path / "a.png")
    copy = tmp_path / "run"
    shutil.copytree(trained.folder, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = door(*command.split(), "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=run")
    assert done.code == 2
    assert "error[config] the run folder holds another run\n" in done.err
    assert f"where     {copy}\n" in done.err
    assert "a folder without checkpoints," in done.err
    assert "hydra.run.dir=DIR" in done.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
