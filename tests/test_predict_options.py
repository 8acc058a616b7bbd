"""What `predict` does beyond masks: confidence, abstaining, batches, video, lists, faults, going on after a stop."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interruption import sigterm_in_each_batch
from PIL import Image

from segtrain.data.reading import read_image
from segtrain.experiment import from_checkpoint
from segtrain.prediction import reading_ahead

ROOT = Path(__file__).resolve().parents[1]


def photo(path: Path, size: tuple[int, int] = (40, 24), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def lines(folder: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len({line["name"] for line in found}) == len(found)
    return {line["name"]: line for line in found}


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def contents(folder: Path, *kinds: str) -> dict[str, bytes]:
    files = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def predict(door: Any, checkpoint: Path) -> Any:
    """`predict("input=a.png")` writes into out/."""
    return lambda *argv: door("predict", f"checkpoint={checkpoint}", "output=out", "hydra.run.dir=run", *argv)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, size in enumerate([(40, 24)] * 5 + [(32, 32)] * 2 + [(40, 24)]):
        photo(tmp_path / "photos" / f"{number}.png", size, number)
    return tmp_path / "photos"


# --- what is written ---------------------------------------------------------------------------------------------


def test_probabilities_confidence_and_abstaining_agree(predict: Any, checkpoint: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    assert predict("input=a.png").code == 0
    plain = mask(tmp_path / "out/masks/a.png")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["areas", "masks", "overlays", "results.jsonl"]
    segmenter = from_checkpoint(checkpoint)
    with torch.inference_mode():
        batch = torch.from_numpy(read_image(tmp_path / "a.png"))[None]
        probs = segmenter.task.logits(segmenter.model, batch).softmax(1)[0].numpy()
    level = float(np.median(probs.max(0)))
    done = predict("input=a.png", "probs=true", "confidence=true", f"abstain={level}")
    assert done.code == 0, done.err
    with np.load(tmp_path / "out/probs/a.npz") as stored:
        assert (stored["probs"].dtype, stored["probs"].shape) == (np.float16, (5, 24, 40))
        assert np.abs(stored["probs"] - probs).max() < 1e-3
        assert stored["classes"].tolist() == segmenter.classes
    assert np.array_equal(mask(tmp_path / "out/confidence/a.png"), (probs.max(0) * 255).round().astype(np.uint8))
    labels = mask(tmp_path / "out/masks/a.png")
    unsure = probs.max(0) < level
    assert 0 < unsure.sum() < unsure.size
    assert np.array_equal(labels, np.where(unsure, 255, plain))
    areas = json.loads((tmp_path / "out/areas/a.json").read_text())
    assert areas["abstained"] == {"pixels": int(unsure.sum()), "share": unsure.mean()}
    counted = {name: int((labels == index).sum()) for index, name in enumerate(segmenter.classes)}
    assert {name: entry["pixels"] for name, entry in areas["classes"].items()} == counted
    line = lines(tmp_path / "out")["a"]
    assert (line["size"], line["areas"], line["abstained"]) == ([24, 40], counted, int(unsure.sum()))
    summary = json.loads((tmp_path / "run/metrics.json").read_text())
    assert summary == {"images": 1, "pixels": counted, "abstained": int(unsure.sum())}
    assert "no class 50.0%" in done.out


@pytest.mark.parametrize("extra", ["abstain=1", "abstain=0"])
def test_who_asks_for_certainty_or_for_nothing(predict: Any, tmp_path: Path, extra: str) -> None:
    photo(tmp_path / "a.png")
    assert predict("input=a.png", extra).code == 0
    abstained = lines(tmp_path / "out")["a"]["abstained"]
    assert abstained == (24 * 40 if extra == "abstain=1" else 0)


def test_masks_depend_on_neither_batches_nor_threads(predict: Any, photos: Path, tmp_path: Path) -> None:
    found = []
    for batch, workers in ((1, 0), (3, 0), (8, 3), (2, 1)):
        done = predict(
            "input=photos", f"data.batch_size={batch}", f"data.num_workers={workers}", "overwrite=true", "probs=true"
        )
        assert done.code == 0, done.err
        found.append(contents(tmp_path / "out", "masks", "areas", "overlays"))
        assert len(found[-1]) == 3 * 8
        assert sorted(lines(tmp_path / "out")) == [str(number) for number in range(8)]
    assert found[1:] == found[:1] * 3


def test_windows_row_by_row_give_the_masks_of_windows(predict: Any, checkpoint: Path, tmp_path: Path) -> None:
    photo(tmp_path / "long.png", (50, 300))
    done = predict("input=long.png", "inference=slide", "inference.window_size=32", "confidence=true")
    assert done.code == 0, done.err
    segmenter = from_checkpoint(checkpoint, choices={"inference": "slide"}, over={"inference": {"window_size": 32}})
    with torch.inference_mode():
        logits = segmenter.task.logits(segmenter.model, torch.from_numpy(read_image(tmp_path / "long.png"))[None])
    assert np.array_equal(mask(tmp_path / "out/masks/long.png"), logits.argmax(1)[0].numpy())
    expected = (logits.softmax(1).amax(1)[0] * 255).round().numpy()
    assert np.array_equal(mask(tmp_path / "out/confidence/long.png"), expected)


# --- what is done already ----------------------------------------------------------------------------------------


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "masks").rglob("*.png")}


def test_what_is_done_is_not_done_again(predict: Any, photos: Path, tmp_path: Path) -> None:
    first = predict("input=photos")
    assert first.code == 0, first.err
    assert "overwrite" not in first.out
    before, summary = times(tmp_path / "out"), (tmp_path / "run/metrics.json").read_text()
    again = predict("input=photos", "data.batch_size=2")
    assert "done   8 of 8 before, with these weights and settings; overwrite=true does them again" in again.out
    assert times(tmp_path / "out") == before
    assert (tmp_path / "run/metrics.json").read_text() == summary
    # Each of these makes one of them stale.
    photo(photos / "1.png", seed=99)
    (tmp_path / "out/masks/2.png").write_bytes(b"half")
    (tmp_path / "out/overlays/3.jpg").unlink()
    journal = (tmp_path / "out/results.jsonl").read_text().splitlines(keepends=True)
    torn = [line for line in journal if '"name": "4"' not in line] + ['{"name": "4", "fi']
    (tmp_path / "out/results.jsonl").write_text("".join(torn))
    again = predict("input=photos")
    assert again.code == 0, again.err
    assert "done   4 of 8 before" in again.out
    after = times(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"1.png", "2.png", "3.png", "4.png"}
    assert sorted(lines(tmp_path / "out")) == [str(number) for number in range(8)]
    assert "done   " not in predict("input=photos", "overwrite=true").out
    assert all(times(tmp_path / "out")[name] != after[name] for name in after)


@pytest.mark.parametrize("change", ["opacity=0.5", "abstain=0.3", "inference.flip=true", "model"])
def test_other_settings_or_weights_do_all_again(predict: Any, checkpoint: Path, tmp_path: Path, change: str) -> None:
    photo(tmp_path / "a.png")
    assert predict("input=a.png").code == 0
    if change == "model":
        from segtrain import checkpoint as files

        state = files.load(checkpoint)
        weights = state["model"] if state["ema"] is None else state["ema"]["model"]
        next(iter(weights.values())).add_(1e-3)
        files.save(tmp_path / "other.pt", {key: state[key] for key in state if key not in ("format", "sha256")})
        change = "checkpoint=other.pt"
        door_words = [change]
    else:
        door_words = [change]
    assert "done   " not in predict("input=a.png", *door_words).out
    assert "done   1 of 1" in predict("input=a.png", *door_words).out


def test_after_a_kill_the_rest_is_done_and_nothing_is_half_written(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    for number in range(40):
        photo(tmp_path / "photos" / f"{number:03}.png", (200, 160), number)
    argv = ["predict", f"checkpoint={checkpoint}", "input=photos", "output=out", "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-m", "segtrain", *argv], cwd=tmp_path, env=environment)
    journal = tmp_path / "out/results.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    written = {path.stem for path in (tmp_path / "out/masks").glob("*.png")}
    assert written  # and each of them is whole: beside it, never in its place, lies what was cut off
    assert all(mask(tmp_path / f"out/masks/{name}.png").shape == (160, 200) for name in written)
    known = journal.read_bytes().count(b"\n")
    before = times(tmp_path / "out")
    done = door(*argv)
    assert done.code == 0, done.err
    if known < 40:
        assert f"done   {known} of 40 before" in done.out
    assert len(lines(tmp_path / "out")) == len(times(tmp_path / "out")) == 40
    assert sum(times(tmp_path / "out")[name] == at for name, at in before.items()) >= known
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_signal_finishes_the_batch_and_says_how_to_go_on(predict: Any, photos: Path, tmp_path: Path) -> None:
    with sigterm_in_each_batch():
        done = predict("input=photos", "data.batch_size=5")
    assert done.code == 143, done.err
    assert "stopped with 5 of 8 images done; their files are whole" in done.err
    assert "to go on: python -m segtrain predict checkpoint=" in done.err
    assert "output=out" in done.err
    again = predict("input=photos", "data.batch_size=5")
    assert (again.code, "done   5 of 8" in again.out) == (0, True)
    assert len(times(tmp_path / "out")) == 8


# --- faults ------------------------------------------------------------------------------------------------------


def test_damaged_images_are_told_at_the_end_and_the_others_are_done(predict: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:200])
    (photos / "5.jpg").write_bytes(b"")
    done = predict("input=photos")
    assert done.code == 3
    assert "2 of 9 images could not be read; the others are done" in done.err
    assert f"{Path('photos/2.png')}: file is damaged" in done.err
    assert f"{Path('photos/5.jpg')}: file is empty" in done.err
    assert len(times(tmp_path / "out")) == 7
    assert json.loads((tmp_path / "run/metrics.json").read_text())["images"] == 7
    photo(photos / "2.png")
    (photos / "5.jpg").unlink()
    again = predict("input=photos")
    # 5.png was 5_png as long as there was a 5.jpg.
    assert (again.code, "done   6 of 8" in again.out) == (0, True)


def test_on_error_stop(predict: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").write_bytes(b"")
    done = predict("input=photos", "on_error=stop", "data.num_workers=0")
    assert (done.code, "file is empty" in done.err) == (3, True)
    assert not (tmp_path / "out/masks").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_name_the_key(predict: Any, tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    photo(tmp_path / "a.png", (40, 24))
    done = predict("input=a.png", "max_pixels=959")
    assert (done.code, "at most max_pixels=959 pixels" in done.err) == (3, True)
    assert "max_pixels=N, if you trust the file" in done.err
    assert predict("input=a.png", "max_pixels=960").code == 0
    assert predict("input=a.png", "max_pixels=100", "overwrite=true").code == 3  # more than twice as many
    assert predict("input=a.png", "max_pixels=null", "overwrite=true").code == 0
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_journal_of_someone_else_is_not_touched(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.jsonl").write_text('{"text": "mine"}\n')
    done = predict("input=a.png")
    assert (done.code, "1 files that predict did not write" in done.err) == (2, True)
    assert (tmp_path / "out/results.jsonl").read_text() == '{"text": "mine"}\n'


# --- lists and names ---------------------------------------------------------------------------------------------


def test_namesakes_from_two_folders_do_not_replace_each_other(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "a" / "x.png", seed=1)
    photo(tmp_path / "b" / "x.png", seed=2)
    assert predict("input=a").code == 0
    before = contents(tmp_path / "out", "masks", "overlays", "areas")
    refused = predict("input=b")
    assert refused.code == 2
    assert "results of other images of the same names would be replaced" in refused.err
    assert contents(tmp_path / "out", "masks", "overlays", "areas") == before
    assert predict("input=b", "overwrite=true").code == 0
    assert contents(tmp_path / "out", "overlays") != {k: v for k, v in before.items() if k.startswith("overlays")}
    (tmp_path / "b").rename(tmp_path / "moved")  # the same photo found elsewhere is no clash
    assert predict("input=moved").code == 0


def listing(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_list_on_standard_input(predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "one/deep/a.png")
    photo(tmp_path / "one/b.png")
    photo(tmp_path / "one/out of it/c.png")
    text = f"one/deep/a.png\n\n{tmp_path}/one/b.png\none/deep/../deep/a.png\none/out of it/c.png\n"
    listing(monkeypatch, text.encode())
    done = predict("input=-")
    assert done.code == 0, done.err
    assert sorted(lines(tmp_path / "out")) == ["b", "deep/a", "out of it/c"]
    listing(monkeypatch, b"one/b.png\none/missing.png\n")
    done = predict("input=-", "overwrite=true")
    assert (done.code, "file not found" in done.err) == (3, True)
    assert f"where     {Path('one/missing.png')}" in done.err


@pytest.mark.parametrize(("content", "found"), [(b"\n", "no paths on standard input"), (b"one\n", "lists a folder")])
def test_a_list_of_nothing(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, found: str
) -> None:
    (tmp_path / "one").mkdir()
    listing(monkeypatch, content)
    done = predict("input=-")
    assert (done.code, found in done.err) == (3, True)


@pytest.mark.parametrize("name", ["new\nline.png", "a b'c\"d.png", "-rf.png", "é 漢.png", "[x]*.png", "..png.png"])
def test_hostile_names(predict: Any, tmp_path: Path, name: str) -> None:
    photo(tmp_path / "photos" / name)
    done = predict("input=photos")
    if name.startswith("."):
        assert done.code == 3  # hidden
        return
    assert done.code == 0, done.err
    stem = name.removesuffix(".png")
    assert list(lines(tmp_path / "out")) == [stem]
    assert (tmp_path / "out/masks" / name).is_file()
    assert "done   1 of 1" in predict("input=photos").out


def test_a_name_that_is_not_utf8(predict: Any, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        photo(tmp_path / "photos" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert predict("input=photos").code == 0
    assert (tmp_path / "out/masks" / name).is_file()
    assert "done   1 of 1" in predict("input=photos").out


def test_no_pattern_leads_out_of_the_output(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "deep/er/a.png")
    photo(tmp_path / "b.png")
    done = predict("input='deep/*/../../*.png'")
    assert done.code == 0, done.err
    assert list(lines(tmp_path / "out")) == ["b"]
    assert [path.name for path in tmp_path.rglob("b.png")] == ["b.png"] * 2
    assert (tmp_path / "out/masks/b.png").is_file()


# --- video -------------------------------------------------------------------------------------------------------


def film(path: Path, frames: int, size: tuple[int, int] = (64, 48)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), (number * 9 % 256, 40, 200), np.uint8))
    writer.release()
    return path


def test_a_video_gives_masks_of_frames_and_a_video_of_overlays(predict: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    film(tmp_path / "in/clip.avi", 7)
    photo(tmp_path / "in/a.png")
    done = predict("input=in", "data.batch_size=3", "confidence=true")
    assert done.code == 0, done.err
    out, segmenter = tmp_path / "out", from_checkpoint(checkpoint)
    capture, total = cv2.VideoCapture(str(tmp_path / "in/clip.avi")), dict.fromkeys(segmenter.classes, 0)
    for number in range(1, 8):
        frame = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
        wanted = segmenter.predict(frame)
        assert np.array_equal(mask(out / f"masks/clip/{number:06}.png"), wanted)
        assert (out / f"confidence/clip/{number:06}.png").is_file()
        for index, name in enumerate(segmenter.classes):
            total[name] += int((wanted == index).sum())
    assert not (out / "masks/clip/000008.png").exists()
    overlays = cv2.VideoCapture(str(out / "overlays/clip.mp4"))
    assert (overlays.get(cv2.CAP_PROP_FPS), overlays.get(cv2.CAP_PROP_FRAME_COUNT)) == (10, 7)
    line = lines(out)["clip"]
    assert (line["frames"], line["size"], line["areas"]) == (7, [48, 64], total)
    assert json.loads((out / "areas/clip.json").read_text())["frames"] == 7
    assert "7 frames, " in done.out
    assert not list(out.rglob(".*"))
    assert "done   2 of 2" in predict("input=in", "confidence=true").out
    film(tmp_path / "in/clip.avi", 3)  # a shorter one takes its place
    assert "done   1 of 2" in predict("input=in", "confidence=true").out
    assert len(list((out / "masks/clip").iterdir())) == 3


def test_without_a_video_writer_overlays_are_frames(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "clip.avi", 2)
    monkeypatch.setattr("segtrain.prediction.video.OverlayVideo.works", False)
    assert predict("input=clip.avi").code == 0
    assert sorted(path.name for path in (tmp_path / "out/overlays/clip").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert not (tmp_path / "out/overlays/clip.mp4").exists()


def test_a_video_beside_its_frames_and_one_that_is_none(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "in/clip/000001.jpg")
    film(tmp_path / "in/clip.avi", 1)
    (tmp_path / "in/broken.mp4").write_bytes(b"no film")
    done = predict("input=in")
    assert (done.code, "file is not a video that OpenCV can read" in done.err) == (3, True)
    assert sorted(lines(tmp_path / "out")) == ["clip/000001", "clip_avi"]


def test_frames_of_someone_else_are_not_overwritten(predict: Any, tmp_path: Path) -> None:
    film(tmp_path / "clip.avi", 1)
    photo(tmp_path / "out/masks/clip/000001.png")
    done = predict("input=clip.avi")
    assert (done.code, "files that predict did not write" in done.err) == (2, True)


# --- names and faults --------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="names of 255 bytes as on Linux")
def test_a_name_too_long_for_its_results_is_told_and_the_longest_that_fits_is_done(
    predict: Any, tmp_path: Path
) -> None:
    longest, too_long, wide = "a" * 250, "b" * 251, "é" * 125 + "x"
    for name in (longest, too_long, wide):
        photo(tmp_path / "in" / f"{name}.png")
    done = predict("input=in")
    assert done.code == 3, done.err
    assert "2 of 3 images could not be read" in done.err
    assert done.err.count("the file's name is too long for those of its results: 251 bytes") == 2
    assert [path.stem for path in (tmp_path / "out" / "masks").iterdir()] == [longest]
    assert (tmp_path / "out" / "areas" / f"{longest}.json").is_file()
    assert predict("input=in").code == 3  # and again, when the others are done
    done = predict("input=in", "on_error=stop", "overwrite=true")
    assert (done.code, "fix       rename it" in done.err) == (3, True)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_faults_of_predict_speak_of_its_input_and_of_no_split(predict: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    done = predict("input=a.png")
    assert done.code == 3
    assert "split" not in done.err
    assert "fix       replace the file, or take it out of the input" in done.err


def test_a_missing_file_of_a_list_is_told_as_such(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "there.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"there.png\ngone.png\n")))
    done = predict("input=-")
    assert done.code == 3
    assert "error[data] file not found" in done.err
    assert "fix       correct its path, or take it out of the input" in done.err
    assert (tmp_path / "out" / "masks" / "there.png").is_file()


def test_an_image_beyond_twice_pillows_limit_is_read_where_max_pixels_allows_it_and_waits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "large.png", (40, 24))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reading_ahead._pixels(file) == reading_ahead.PIXELS_HELD
    for limit, read in ((None, True), (960, True), (959, False)):
        (one,) = reading_ahead.read_ahead([("large", file)], 3, threads=2, depth=2, max_pixels=limit)
        assert isinstance(one.image, np.ndarray) == read
        assert Image.MAX_IMAGE_PIXELS == 100
