"""`python -m segtrain predict input=…`: masks, overlays and class areas for images nobody labelled."""

from __future__ import annotations

import glob
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from segtrain import experiment, pictures, signatures
from segtrain.composition import compose, lay_over
from segtrain.data.dataset import IMAGE_SUFFIXES
from segtrain.data.reading import read_image
from segtrain.errors import ConfigError, DataError, listed
from segtrain.run_folder import RunFolder
from segtrain.tracking import RunTracker, write_json
from segtrain.types import IGNORE_INDEX, Fraction

KINDS = {"masks": ".png", "overlays": ".jpg", "areas": ".json"}
"""What is written for each image, each kind in a folder of its name."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The command's own keys."""

    input: str
    checkpoint: str | None = None
    output: str | None = None
    opacity: Fraction = 0.55
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


def run(cfg: DictConfig, folder: RunFolder) -> float:
    """Writes `masks/`, `overlays/` and `areas/` for each image; returns NaN: nothing is scored."""
    plain: Any = OmegaConf.to_container(cfg)
    signatures.check(plain, PredictOptions, "")
    options = PredictOptions(**plain)
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    known = Path(options.output).expanduser() if options.output else folder.path
    images, own = find_images(options.input, known)
    refuse_overwriting(images, known)
    segmenter, report = _segmenter(options)
    path = folder.choose(segmenter.settings.name)
    output = known or path
    folder.describe(segmenter.config, experiment.versions(), str(segmenter.device))
    tracker = RunTracker(path, log_name="predict.log")
    tracker.say(f"model  {report}")
    passed = f", {own} results of predict passed over" if own else ""
    tracker.say(f"images {len(images)} on {segmenter.device}{passed}")
    bar = tracker.bar(len(images), "predict")
    totals = np.zeros(len(segmenter.classes), np.int64)
    for name, file in images.items():
        image = read_image(file, segmenter.channels)
        prediction = segmenter.predict(image)
        areas = np.bincount(prediction.ravel(), minlength=len(segmenter.classes))
        totals += areas
        write_result(output, name, file, image, prediction, areas, segmenter, options.opacity)
        bar.update(1)
        if len(images) <= 20:
            shares = [(n, a / areas.sum()) for n, a in zip(segmenter.classes, areas, strict=True) if a]
            tracker.say(f"{file}: " + ", ".join(f"{n} {s:.1%}" for n, s in sorted(shares, key=lambda x: -x[1])))
    bar.close()
    summary = {"images": len(images), "pixels": dict(zip(segmenter.classes, totals.tolist(), strict=True))}
    write_json(path / "metrics.json", summary)
    for kind in KINDS:
        tracker.say(f"{kind}: {output / kind}")
    tracker.say(f"metrics: {path / 'metrics.json'}")
    return math.nan


def goal(cfg: DictConfig) -> tuple[str, bool]:
    """Predictions have no score."""
    return "", True


def _segmenter(options: PredictOptions) -> tuple[experiment.Segmenter, str]:
    over, choices = options.over or {}, options.choices or {}
    if options.checkpoint is not None:
        found = experiment.from_checkpoint(
            options.checkpoint, over=over, choices=choices, allow_targets=options.allow_targets
        )
        return found, options.checkpoint
    # Published segmentation weights carry VOC's classes; with other data the user says which.
    base = compose(["data=voc"])
    cfg = lay_over(OmegaConf.to_container(base, resolve=False), over, choices)  # type: ignore[arg-type]
    cfg.allow_targets = options.allow_targets or []
    if cfg.model.get("weights", "none") in ("none", "imagenet"):
        raise ConfigError(
            f"no trained weights: checkpoint is not set and model.weights={cfg.model.get('weights')}",
            expected="checkpoint=PATH, or a model with published weights",
            fix="model=deeplabv3_torchvision model.backbone=resnet101 model.weights=torchvision",
        )
    return experiment.from_config(cfg)


def find_images(source: str, output: Path | None) -> tuple[dict[str, Path], int]:
    """Image files by the name their results get: a file, a folder with its tree, or a glob.

    What lies in `output`'s own masks/ and overlays/ is passed over, and how much it was returned too: a second call
    with one folder for both would else take its own results for photos.

    Raises:
        DataError: nothing there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {path.stem: path}, 0
    if path.is_dir():
        all_files = [file for file in sorted(path.rglob("*")) if _is_image(file)]
    else:
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        all_files = [Path(name) for name in found if _is_image(Path(name))]
    results = [] if output is None else [(output / kind).resolve() for kind in KINDS]
    files = [file for file in all_files if not any(file.resolve().is_relative_to(folder) for folder in results)]
    own = len(all_files) - len(files)
    if not files:
        raise DataError(
            "no images found" + (f" but {own} in {output}/{{{','.join(KINDS)}}}, where results go" if own else ""),
            where=source,
            expected=f"a file, a folder or a glob of {listed(IMAGE_SUFFIXES, 20)}",
            fix="another output=DIR, if they are the images" if own else None,
        )
    root = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root) for file in files]
    stems = [str(name.with_suffix("")) for name in names]
    # dog.jpg beside dog.png: the suffix tells their results apart.
    count = Counter(stems)
    images: dict[str, Path] = {}
    for stem, name, file in zip(stems, names, files, strict=True):
        result = stem if count[stem] == 1 else str(name.with_name(name.name.replace(".", "_")))
        if result in images:
            raise DataError(
                f"two images would have the result '{result}'",
                where=f"{images[result]}\n{file}",
                fix="rename one of them",
            )
        images[result] = file
    return images, own


def refuse_overwriting(images: Mapping[str, Path], output: Path | None) -> None:
    """Stops before anything is written where a result would replace a file that predict did not write.

    Raises:
        ConfigError: such files; the usual ones are a dataset's own masks.
    """
    if output is None:  # a new folder
        return
    inputs = {file.resolve() for file in images.values()}
    foreign = []
    for name in images:
        there = [path for path in _result_files(output, name).values() if path.exists()]
        earlier = _is_ours(_result_files(output, name)["areas"])
        foreign += [path for path in there if not earlier or path.resolve() in inputs]
    if foreign:
        raise ConfigError(
            f"{len(foreign)} files that predict did not write would be overwritten",
            where="\n".join(str(path) for path in foreign[:10])
            + (f"\nand {len(foreign) - 10} more" if len(foreign) > 10 else ""),
            expected="a folder without them, or with the results of an earlier predict",
            fix="another output=DIR (without it: hydra.run.dir=DIR, or leave both out for a new folder)",
        )


def _is_ours(areas: Path) -> bool:
    """Whether an earlier predict wrote this file, and with it the mask and the overlay of the same name."""
    try:
        content = json.loads(areas.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or no JSON: whatever it is, it is not ours
        return False
    return isinstance(content, dict) and set(content) == {"image", "size", "classes"}


def _result_files(output: Path, name: str) -> dict[str, Path]:
    """Where the results of an image go; suffixes are added, because a name may hold dots."""
    return {kind: output / kind / f"{name}{suffix}" for kind, suffix in KINDS.items()}


def _is_image(file: Path) -> bool:
    """Hidden files are passed over: `._dog.jpg`, which macOS leaves beside dog.jpg, is no image."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def write_result(
    output: Path,
    name: str,
    file: Path,
    image: np.ndarray,
    prediction: np.ndarray,
    areas: np.ndarray,
    segmenter: experiment.Segmenter,
    opacity: float,
) -> None:
    """Index PNG with the palette, overlay, and the pixels and share of each class."""
    mask = Image.fromarray(prediction)
    table = np.zeros((256, 3), np.uint8)
    table[: len(segmenter.palette)] = segmenter.palette
    table[IGNORE_INDEX] = pictures.VOID
    mask.putpalette(table.tobytes())
    picture = Image.fromarray(pictures.overlay(image, prediction, segmenter.palette, opacity))
    files = _result_files(output, name)
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    classes = {
        label: {"pixels": int(area), "share": float(area / areas.sum())}
        for label, area in zip(segmenter.classes, areas, strict=True)
    }
    content = {"image": str(file), "size": list(prediction.shape), "classes": classes}
    write_json(files["areas"], content)  # first: what is there says that the other two are ours to overwrite
    mask.save(files["masks"])
    picture.save(files["overlays"], quality=92)
