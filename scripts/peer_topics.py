"""What `compare_peers.py` measures: each topic's candidates, and their times in turns.

Runs in the environment that holds the peers. One of them may be missing, so each candidate imports its own libraries.
"""

from __future__ import annotations

import importlib.machinery
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE, CLASSES, CROP = (500, 375), 21, (512, 512)
Call = Callable[[], object]
Builder = Callable[[], Call]


def measure(topic: str, repeats: int, seconds: float) -> dict[str, Any]:
    """Milliseconds per item, spread and ratio of each candidate of one topic; a reason where there is none."""
    import torch

    from segtrain.benchmark.measuring import interleaved, rows

    torch.set_num_threads(1)
    torch.manual_seed(0)
    stub_compiled_operations()
    items, builders = TOPICS[topic]()
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for name, build in builders.items():
        try:
            call = build()
            call()
        except Exception as error:  # whatever is wrong with a peer, the others are measured
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        else:
            calls[name] = call
    held, sys.stdout = sys.stdout, sys.stderr  # trainers talk
    try:
        times = interleaved(calls, repeats=repeats, seconds=seconds)
    finally:
        sys.stdout = held
    found = rows(times, {name: name for name in times}, base=next(iter(times)), items=items)
    return {"rows": [{"name": row.name, **row.numbers()} for row in found], "missing": missing}


def stub_compiled_operations() -> None:
    """mmsegmentation imports mmcv's compiled operations, which mmcv-lite lacks; nothing measured here calls them."""

    class Absent(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: (_ for _ in ()).throw(RuntimeError(f"no compiled operation {name}"))

    stub = Absent("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)  # mmengine asks whether it can be found
    sys.modules.setdefault("mmcv._ext", stub)


def data() -> tuple[float, dict[str, Builder]]:
    """Decode, scale, crop, flip, color: training samples of one core from VOC-like files."""
    import cv2
    import numpy as np
    import torch
    from PIL import Image

    from segtrain.benchmark.data import loader_of
    from segtrain.benchmark.naive_data import NaiveDataset, OpenCvFiles
    from segtrain.benchmark.samples import PROFILES, write_folder
    from segtrain.experiment import build_dataset, compose

    cv2.setNumThreads(0)
    folder = Path(tempfile.mkdtemp(prefix="segtrain-peers-"))
    pairs = [(str(image), str(mask)) for image, mask in write_folder(folder, PROFILES["voc"], 8)]

    def usual() -> Call:
        naive = NaiveDataset(OpenCvFiles(pairs), len(pairs), CROP)
        return lambda: [naive[index] for index in range(len(pairs))]

    def ours() -> Call:
        classes = ",".join(f"c{number}" for number in range(CLASSES))
        words = ["data=folder", f"data.root={folder}", f"data.classes=[{classes}]", "data.crop_size=512"]
        workers = loader_of(build_dataset(compose(words), "train"), 0).loader.dataset
        return lambda: [workers[(0, index)] for index in range(len(pairs))]

    def torchvision() -> Call:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        steps = v2.Compose(
            [
                v2.RandomResize(min_size=SIZE[1] // 2, max_size=SIZE[1] * 2, antialias=True),
                v2.RandomCrop(CROP, pad_if_needed=True, fill={Image.Image: 124, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(0.5),
                v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
                v2.PILToTensor(),
                v2.ToDtype({tv_tensors.Mask: torch.int64, "others": torch.float32}, scale=True),
            ]
        )

        def one(image: str, mask: str) -> object:
            target = tv_tensors.Mask(torch.from_numpy(np.array(Image.open(mask)))[None])
            return steps(Image.open(image).convert("RGB"), target)

        return lambda: [one(*pair) for pair in pairs]

    def mmseg() -> Call:
        from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
        from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

        steps = [
            LoadImageFromFile(),
            LoadAnnotations(imdecode_backend="pillow"),
            RandomResize(scale=SIZE, ratio_range=(0.5, 2.0), keep_ratio=True),
            RandomCrop(crop_size=CROP, cat_max_ratio=0.75),
            RandomFlip(prob=0.5),
            PhotoMetricDistortion(),
            PackSegInputs(),
        ]

        def one(image: str, mask: str) -> None:
            state: Any = {"img_path": image, "seg_map_path": mask, "seg_fields": [], "reduce_zero_label": False}
            state["label_map"] = None
            for step in steps:
                state = step(state)

        return lambda: [one(*pair) for pair in pairs]

    return len(pairs), {
        "albumentations, usual order (float32 out)": usual,
        "torchvision v2, PIL (float32 out)": torchvision,
        "smp's tutorials: albumentations, preprocess_input (float32 out)": lambda: smp_samples(pairs),
        "mmsegmentation transforms (uint8 out)": mmseg,
        "segtrain (uint8 out, color and normalization on the device)": ours,
    }


def smp_samples(pairs: list[tuple[str, str]]) -> Call:
    """The usual steps, and then the preprocessing that smp's tutorials apply to an image."""
    import albumentations
    import torch
    from segmentation_models_pytorch.encoders._preprocessing import preprocess_input

    from segtrain.benchmark.naive_data import OpenCvFiles, pipeline

    steps, read = albumentations.Compose(pipeline(CROP).transforms[:-2]), OpenCvFiles(pairs)
    # What `get_preprocessing_fn` gives for ImageNet's encoders, and asks the network for.
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def one(index: int) -> object:
        image, mask = read(index)
        done = steps(image=image, mask=mask)
        pixels = preprocess_input(done["image"], mean, std, input_space="RGB", input_range=[0, 1])
        target = torch.from_numpy(done["mask"].astype("int64"))
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype("float32")), target

    return lambda: [one(index) for index in range(len(pairs))]


def matrix() -> tuple[float, dict[str, Builder]]:
    """Labels of 8 images of 512x512, 21 classes -> counts."""
    import numpy as np
    import torch

    from segtrain.benchmark.labels import our_matrix, usual_matrix
    from segtrain.benchmark.samples import label_map

    rng = np.random.default_rng(0)
    target = torch.from_numpy(np.stack([label_map(rng, CROP, CLASSES) for _ in range(8)]))
    prediction = target.roll(3, 2).masked_fill(target.roll(3, 2) == 255, 0)
    wide, truth = prediction.long(), target.long()

    def torchmetrics() -> Call:
        from torchmetrics import JaccardIndex

        metric = JaccardIndex(task="multiclass", num_classes=CLASSES, ignore_index=255, validate_args=False)
        return lambda: metric.update(wide, truth)

    def mmseg() -> Call:
        from mmseg.evaluation.metrics import IoUMetric

        return lambda: [IoUMetric.intersect_and_union(p, t, CLASSES, 255) for p, t in zip(wide, truth, strict=True)]

    def smp() -> Call:
        import segmentation_models_pytorch

        stats = segmentation_models_pytorch.metrics.get_stats
        return lambda: stats(wide, truth, mode="multiclass", num_classes=CLASSES, ignore_index=255)

    return 8, {
        "torch.bincount of labelled pixels (FCN, torchvision's references)": lambda: (
            lambda: usual_matrix(wide, target, CLASSES)
        ),
        "torchmetrics JaccardIndex, no validation": torchmetrics,
        "mmsegmentation IoUMetric": mmseg,
        "smp get_stats": smp,
        "segtrain ConfusionMatrix, every value checked": lambda: lambda: our_matrix(prediction, target, CLASSES),
    }


def losses() -> tuple[float, dict[str, Builder]]:
    """Forward and backward from 64x64 logits upsampled to 512x512, 21 classes, one image."""
    import torch

    from segtrain.benchmark.losses import OURS, Work, forward_backward
    from segtrain.benchmark.reference_losses import cross_entropy

    logits, target = Work().make(torch.device("cpu"))

    def timed(loss: Any) -> Call:
        return lambda: forward_backward(loss, logits, target)

    def smp(name: str) -> Builder:
        def build() -> Call:
            import segmentation_models_pytorch

            return timed(getattr(segmentation_models_pytorch.losses, name)("multiclass", ignore_index=255))

        return build

    def lovasz() -> Call:
        from mmseg.models.losses import LovaszLoss

        loss = LovaszLoss(reduction="none", loss_type="multi_class", per_image=False)
        return timed(lambda value, truth: loss(value, truth, ignore_index=255))

    def dice() -> Call:
        from mmseg.models.losses import DiceLoss

        loss = DiceLoss(ignore_index=255)
        # It makes one-hot maps of the labels before it looks at ignore_index, and 255 does not fit in them.
        return timed(lambda value, truth: loss(value, truth.clamp(max=CLASSES - 1)))

    def ohem() -> Call:
        from mmseg.structures import OHEMPixelSampler

        head: Any = types.SimpleNamespace(
            ignore_index=255, align_corners=False, loss_decode=torch.nn.CrossEntropyLoss()
        )
        sampler = OHEMPixelSampler(head, thresh=0.7, min_kept=100_000)

        def loss(value: Any, truth: Any) -> Any:
            kept = sampler.sample(value, truth.unsqueeze(1))
            every = torch.nn.functional.cross_entropy(value, truth, ignore_index=255, reduction="none")
            return (every * kept).mean()

        return timed(loss)

    found: dict[str, Builder] = {"F.cross_entropy": lambda: timed(cross_entropy)}
    found |= {f"smp {name}": smp(name) for name in ("FocalLoss", "DiceLoss", "LovaszLoss")}
    found |= {
        "mmsegmentation OHEMPixelSampler and cross-entropy": ohem,
        "mmsegmentation DiceLoss": dice,
        "mmsegmentation LovaszLoss": lovasz,
    }
    return 1, found | {f"segtrain {type(loss).__name__}": lambda loss=loss: timed(loss) for loss in OURS.values()}


def steps() -> tuple[float, dict[str, Builder]]:
    """Steps of two convolutions on 2 images of 32x32 that lie ready: the loop itself."""
    from peer_loops import LOOPS, STEPS  # beside this file

    return STEPS, LOOPS


TOPICS: dict[str, Callable[[], tuple[float, dict[str, Builder]]]] = {
    "data": data,
    "matrix": matrix,
    "losses": losses,
    "steps": steps,
}
