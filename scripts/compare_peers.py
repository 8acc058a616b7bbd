"""Measures this package beside the libraries that people train segmentation with, and prints a Markdown table.

    python scripts/compare_peers.py --venv /path/to/an/empty/folder

Makes a virtual environment of its own there, installs the peers and this package into it, and then runs each topic in
one process, all candidates in turns. A peer that cannot be installed or imported is a row that says why. CPU only, one
thread: what is compared is the work around a network, not the network.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "torchvision": ["torch", "torchvision"],
    "albumentations": ["albumentations"],
    "smp": ["segmentation-models-pytorch"],
    "lightning": ["lightning"],
    "transformers": ["transformers", "accelerate"],
    "torchmetrics": ["torchmetrics"],
    # mmsegmentation 1.2.2 refuses mmcv 2.2, and mmcv itself has no wheel for a recent torch.
    "mmseg": ["mmengine", "mmcv-lite==2.1.0", "mmsegmentation", "ftfy", "regex"],
}
SIZE, CLASSES, CROP = (500, 375), 21, (512, 512)
Call = Callable[[], object]
Builder = Callable[[], Call]


def main() -> None:
    """Installs what is missing, measures every topic in a process of its own, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="folder of the virtual environment; made if absent")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per candidate, over all repeats")
    parser.add_argument("--topic", choices=[*TOPICS], help="measure this one in this process, as the script does")
    parser.add_argument("--skip-install", action="store_true", help="the environment is there already")
    given = parser.parse_args()
    if given.topic is not None:
        sys.stdout.write(json.dumps(measure(given.topic, given.repeats, given.seconds)) + "\n")
        return
    failed = {} if given.skip_install else install(given.venv)
    words = ["--venv", str(given.venv), "--repeats", str(given.repeats), "--seconds", str(given.seconds)]
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    for topic in TOPICS:
        line = [str(python_of(given.venv)), __file__, *words, "--topic", topic]
        with tempfile.TemporaryDirectory(prefix="segtrain-peers-") as scratch:  # what they leave behind goes with it
            environment = {**os.environ, **quiet, "TMPDIR": scratch}
            done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            print(f"\n{topic}: stopped with exit code {done.returncode}")
            continue
        print(table(topic, json.loads(done.stdout.splitlines()[-1]), failed), flush=True)
    print(footer(given.venv))


def python_of(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(venv: Path) -> dict[str, str]:
    """Makes the environment and installs this package and each peer; returns why a peer could not be installed."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python_of(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    failed: dict[str, str] = {}
    for peer, packages in PEERS.items():
        print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed[peer] = (errors or done.stderr.splitlines() or ["pip failed"])[-1][:120]
    subprocess.run([*pip, str(ROOT)], check=True)
    # Peers bring opencv-python, which lies in the same folder as the headless one: the last installed must be ours.
    subprocess.run([*pip, "--force-reinstall", "--no-deps", "opencv-python-headless"], check=True)
    return failed


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


def table(topic: str, found: dict[str, Any], failed: dict[str, str]) -> str:
    """One topic in Markdown, the base first."""
    title = " ".join((TOPICS[topic].__doc__ or topic).split())
    lines = ["", f"**{title}**", "", "| candidate | x the first | ms | spread |", "|---|---:|---:|---:|"]
    for row in found["rows"]:
        lines.append(f"| {row['name']} | {row['ratio']:.2f} | {row['ms']:.3f} | {row['spread']:.2f} |")
    for name, reason in found["missing"].items():
        known = next((why for peer, why in failed.items() if peer in name.lower()), None)
        lines.append(f"| {name} | not installable: {known or reason} | | |")
    return "\n".join(lines)


def footer(venv: Path) -> str:
    """What the table was measured with: machine, versions, commit."""
    code = (
        "import torch; from importlib.metadata import distributions as d; "
        "from segtrain.benchmark.hardware import machine, machine_line; "
        "print(machine_line(machine(torch.device('cpu')))); "
        "want = {'segtrain','torch','torchvision','albumentations','segmentation-models-pytorch','lightning',"
        "'transformers','torchmetrics','mmengine','mmcv-lite','mmsegmentation','opencv-python-headless','numpy'}; "
        "print(', '.join(sorted({f\"{x.name} {x.version}\" for x in d() if x.name in want})))"
    )
    said = subprocess.run([str(python_of(venv)), "-c", code], capture_output=True, text=True, check=True).stdout
    line = ["git", "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    commit = done.stdout.strip() if done.returncode == 0 else "no commit"
    return f"\n{said.strip()}\ncommit {commit}, one thread, medians of rounds in which all candidates take turns"


if __name__ == "__main__":
    main()
