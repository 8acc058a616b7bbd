"""Makes COCO's panoptic files of its instance files: every object a segment, all other pixels one kind of stuff.

    python scripts/panoptic_from_instances.py --root DIR --split val

DIR holds `annotations/instances_{split}2017.json` and `{split}2017/`. Writes `annotations/panoptic_{split}2017.json`,
and the PNG files beside it. Where objects overlap, the smaller one lies on top; crowds lie at the bottom and stay
crowds. `data=coco_panoptic` reads the result with `data.classes` and `data.things` as printed at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from segtrain.data.coco.instances import Coco
from segtrain.experiment import build_dataset, compose
from segtrain.panoptic import from_instances
from segtrain.panoptic_files import PanopticWriter

OTHER = 183
"""COCO's id of the stuff that has no name of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes COCO's panoptic files of its instance files.")
    parser.add_argument("--root", type=Path, required=True, help="folder of COCO 2017")
    parser.add_argument("--split", choices=["train", "val"], default="val")
    options = parser.parse_args()
    data = build_dataset(compose(["data=coco", f"data.root={options.root}"]), options.split)
    assert isinstance(data, Coco)
    used = [0, *np.unique(data.annotations.labels).tolist()]  # classes that occur
    place = {label: number for number, label in enumerate(used)}
    classes = [data.classes[label] for label in used]
    writer = PanopticWriter(
        options.root / "annotations" / f"panoptic_{options.split}2017",
        classes=classes,
        things=classes[1:],
        palette=[data.palette[label] for label in used],
        category_ids={data.classes[label]: data.category_ids[label] if label else OTHER for label in used},
    )
    for record in data.records:
        objects = data.read_objects(record)
        objects.labels = objects.labels.clone().apply_(place.__getitem__)
        assert record.image is not None
        writer.add(from_instances(objects), image_id=record.extra["id"], image=record.image.name)
    print(f"{writer.finish()}: {len(data.records)} images")
    print(f"'data.classes=[{','.join(classes)}]' 'data.things=[{','.join(classes[1:])}]' data.palette=null")


if __name__ == "__main__":
    main()
