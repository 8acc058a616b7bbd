"""What `--help` says."""

from __future__ import annotations

from pathlib import Path

from segtrain import __version__
from segtrain.composition import COMMANDS, groups

EXAMPLES = (
    ("python -m segtrain", "train a U-Net on generated shapes: no download, no GPU"),
    ("python -m segtrain experiment=unet_pet data.root=/datasets", "a recipe on a dataset you have"),
    ("python -m segtrain model=deeplabv3plus data=voc optimizer.lr=3e-4", "other parts, other values"),
    ("python -m segtrain evaluate checkpoint=outputs/train/…/best.pt", "score a checkpoint"),
    ("python -m segtrain predict checkpoint=… input='photos/*.jpg'", "masks, overlays, class areas"),
    ("python -m segtrain --multirun model=unet,lraspp optimizer.lr=1e-3,3e-4", "every combination"),
)


def help_text(argv: list[str]) -> str:
    """Commands, groups with their options, and six examples."""
    own = [Path(argv[i + 1]) for i, a in enumerate(argv[:-1]) if a in ("--config-dir", "-cd")]
    own += [Path(a.partition("=")[2]) for a in argv if a.startswith("--config-dir=")]
    lines = [f"segtrain {__version__}: train, evaluate and use image segmentation models", ""]
    lines += ["usage: python -m segtrain [command] [group=option …] [key=value …]", "", "commands"]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    lines += ["", "groups"]
    lines += [f"  {group:<10} {', '.join(options)}" for group, options in groups(own).items()]
    lines += ["", "examples"]
    lines += [f"  {line}\n      {what}" for line, what in EXAMPLES]
    lines += ["", "flags", "  --cfg job        show the composed config"]
    lines += ["  --multirun, -m   one job for each combination of a,b,c values"]
    lines += ["  --config-dir DIR your own groups and experiments", "  --version"]
    return "\n".join(lines)
