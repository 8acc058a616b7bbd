"""Parts that cannot work together are refused with words that mend it, without any data on disk."""

from __future__ import annotations

import shlex

import pytest

from segtrain.clashes import refuse_clashes
from segtrain.composition import compose
from segtrain.errors import ConfigError
from segtrain.settings import Settings

CLASHES = [
    (["data.num_classes=4"], "data.num_classes=4"),
    (["model.num_classes=4"], "model.num_classes=4, but the data have 5 classes"),
    (["data.classes=[background,disc,square,triangle]", "data.num_classes=5"], "data.num_classes=5"),
    (["model.in_channels=1"], "model.in_channels=1, but images have 3 channels"),
    (["data.channels=1", "model.in_channels=3"], "model.in_channels=3, but images have 1 channels"),
    (["model.normalize.mean=[0.5,0.5]"], "model.normalize.mean has 2 values, images have 3 channels"),
    (
        ["data.channels=1"],
        "model.normalize.mean has 3 values and model.normalize.std has 3 values, images have 1 channels",
    ),
    (
        ["model=torchvision", "data.channels=1", "model.normalize.mean=[0.5]", "model.normalize.std=[0.2]"],
        "data.channels=1, but torchvision.models.segmentation.fcn_resnet50 takes color images only",
    ),
    (["trainer.monitor=iou"], "trainer.monitor=iou"),
]


@pytest.mark.parametrize(("overrides", "found"), CLASHES, ids=[" ".join(case[0]) for case in CLASHES])
def test_clashes_between_parts(overrides: list[str], found: str) -> None:
    settings = Settings(compose(overrides))
    with pytest.raises(ConfigError) as caught:
        refuse_clashes(settings)
    assert caught.value.found == found


@pytest.mark.parametrize(
    "overrides", [[], ["data.channels=1", "model.normalize.mean=[0.5]", "model.normalize.std=[0.2]"]]
)
def test_parts_that_fit(overrides: list[str]) -> None:
    refuse_clashes(Settings(compose(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.channels=1"],
        ["data.channels=1", "model.normalize.std=[0.3]"],
        ["model.normalize.mean=[0.1,0.2]"],
        ["model.normalize.mean=[]", "model.normalize.std=[]"],
    ],
    ids=" ".join,
)
def test_the_proposed_normalization_works_when_pasted(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_clashes(Settings(compose(overrides)))
    pasted = shlex.split(caught.value.fix or "")
    kept = [word for word in overrides if word.split("=")[0] not in [word.split("=")[0] for word in pasted]]
    refuse_clashes(Settings(compose([*kept, *pasted])))


def test_the_proposed_normalization_is_the_mean_of_the_colors() -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_clashes(Settings(compose(["data.channels=1"])))
    assert caught.value.fix == "'model.normalize.mean=[0.449]' 'model.normalize.std=[0.226]'"
