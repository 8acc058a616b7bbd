"""Draws the superpixels that `model=slic_kmeans` sees.

    python scripts/superpixels.py photo.jpg [more.jpg …] [--segments 250] [--compactness 10] [--output DIR]

Writes `NAME_superpixels.png` for each image. Needs scikit-image: pip install -e '.[classical]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from segtrain.data.reading import read_image
from segtrain.models.classical.superpixels import superpixel_picture, superpixels


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws SLIC superpixels over images.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--segments", type=int, default=250, help="about how many superpixels an image is cut into")
    parser.add_argument("--compactness", type=float, default=10.0, help="how much nearness counts against color")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for file in options.images:
        image = read_image(file, 3)
        labels = superpixels(image, options.segments, options.compactness)
        picture = options.output / f"{file.stem}_superpixels.png"
        Image.fromarray(superpixel_picture(image, labels)).save(picture)
        print(f"{picture}: {labels.max() + 1} superpixels")


if __name__ == "__main__":
    main()
