"""`python -m segtrain predict input=…`: masks, overlays and class areas for images nobody labelled."""

from __future__ import annotations

import glob
import os
from collections import Counter
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
    """Writes `masks/`, `overlays/` and `areas/` for each image; returns the number of images."""
    plain: Any = OmegaConf.to_container(cfg)
    signatures.check(plain, PredictOptions, "")
    options = PredictOptions(**plain)
    images = find_images(options.input)
    segmenter, report = _segmenter(options)
    path = folder.choose(segmenter.settings.name)
    output = Path(options.output).expanduser() if options.output else path
    folder.describe(segmenter.config, experiment.versions(), str(segmenter.device))
    tracker = RunTracker(path, log_name="predict.log")
    tracker.say(f"model  {report}")
    tracker.say(f"images {len(images)} on {segmenter.device}")
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
    for kind in ("masks", "overlays", "areas"):
        tracker.say(f"{kind}: {output / kind}")
    tracker.say(f"metrics: {path / 'metrics.json'}")
    return float(len(images))


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


def find_images(source: str) -> dict[str, Path]:
    """Image files by the name their results get: a file, a folder with its tree, or a glob.

    Raises:
        DataError: nothing there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {path.stem: path}
    if path.is_dir():
        files, root = [file for file in sorted(path.rglob("*")) if _is_image(file)], path
    else:
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = [Path(name) for name in found if _is_image(Path(name))]
        root = Path(os.path.commonpath([file.parent for file in files])) if files else path
    if not files:
        raise DataError(
            "no images found", where=source, expected=f"a file, a folder or a glob of {listed(IMAGE_SUFFIXES, 20)}"
        )
    names = [file.relative_to(root) for file in files]
    stems = [str(name.with_suffix("")) for name in names]
    # dog.jpg beside dog.png: the suffix tells their results apart.
    count = Counter(stems)
    results: dict[str, Path] = {}
    for stem, name, file in zip(stems, names, files, strict=True):
        result = stem if count[stem] == 1 else str(name.with_name(name.name.replace(".", "_")))
        if result in results:
            raise DataError(
                f"two images would have the result '{result}'",
                where=f"{results[result]}\n{file}",
                fix="rename one of them",
            )
        results[result] = file
    return results


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
    mask.save(_beside(output / "masks" / name, ".png"))
    picture.save(_beside(output / "overlays" / name, ".jpg"), quality=92)
    classes = {
        label: {"pixels": int(area), "share": float(area / areas.sum())}
        for label, area in zip(segmenter.classes, areas, strict=True)
    }
    content = {"image": str(file), "size": list(prediction.shape), "classes": classes}
    write_json(_beside(output / "areas" / name, ".json"), content)


def _beside(path: Path, suffix: str) -> Path:
    """`path` with the suffix added (a name may hold dots), its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + suffix)
