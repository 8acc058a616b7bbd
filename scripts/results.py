"""Trains the rows of the README's results table and prints them as Markdown.

    python scripts/results.py --data /datasets --weights mobilenet_v2.pth [--only unet_pet] [--out outputs/results]

`--data` holds oxford-iiit-pet, VOCdevkit, CamVid and portrait360; `--weights` is an ImageNet MobileNetV2 file.
A row that has its metrics.json already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROWS = {
    "unet_pet": ["experiment=unet_pet", "model.depth=4", "model.base_channels=16", "data.root={data}"],
    # In this set 1 is the background and 0 the person.
    "unet_portrait": ["experiment=unet_portrait", "data.root={data}/portrait360", "data.label_map={{0: 1, 1: 0}}"],
    "deeplabv3plus_camvid": [
        "experiment=deeplabv3plus_camvid",
        "data.root={data}",
        "model.weights={weights}",
        "trainer.epochs=4",
    ],
    "deeplabv3plus_mobilenet_voc": [
        "experiment=deeplabv3plus_mobilenet_voc",
        "data.root={data}",
        "model.weights={weights}",
        "data.crop_size=256",
        "optimizer=adamw",
        "optimizer.lr=1e-3",
        "trainer.epochs=5",
    ],
}


def train(name: str, overrides: list[str], folder: Path) -> None:
    """Runs one row and keeps its wall time."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "segtrain", *overrides, f"hydra.run.dir={folder}"], check=True)
    (folder / "wall_seconds").write_text(f"{time.monotonic() - started:.0f}")


def row(name: str, shown: list[str], folder: Path) -> str:
    """One line of the table."""
    scores = json.loads((folder / "metrics.json").read_text())
    minutes = int((folder / "wall_seconds").read_text()) / 60
    command = "`python -m segtrain " + shlex.join(shown) + "`"
    return (
        f"| {100 * scores['miou']:.1f} | {100 * scores['pixel_accuracy']:.1f} | {scores['epochs']} | "
        f"{minutes:.0f} min | {command} |"
    )


def main() -> None:
    """Trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--out", type=Path, default=Path("outputs/results"))
    options = parser.parse_args()
    lines = ["| mIoU | pixel accuracy | epochs | wall time | command |", "|---|---|---|---|---|"]
    for name, overrides in ROWS.items():
        if options.only in (None, name):
            folder = options.out / name
            if not (folder / "metrics.json").exists():
                train(name, [o.format(data=options.data, weights=options.weights) for o in overrides], folder)
            lines.append(row(name, [o.format(data="DATA", weights="WEIGHTS") for o in overrides], folder))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print("\n".join(lines))
    print(f"\ncommit {commit}, {platform.processor() or platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
