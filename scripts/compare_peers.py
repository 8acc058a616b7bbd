"""Measures this package beside the libraries that people train segmentation with, and prints a Markdown table.

    python scripts/compare_peers.py --venv /path/to/an/empty/folder

Makes a virtual environment of its own there, installs the peers and this package into it, and then runs each topic in
one process, all candidates in turns. A peer that cannot be installed or imported is a row that says why. CPU only, one
thread: what is compared is the work around a network, not the network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer_topics import TOPICS, measure  # beside this file

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
