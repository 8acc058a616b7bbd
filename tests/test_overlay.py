"""What is laid over a checkpoint's config, and what of a command line that is."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from segtrain.composition import COMMANDS, compose, groups
from segtrain.errors import ConfigError
from segtrain.overlay import lay_over, root_keys, split_overrides


def plain(cfg: Any) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[no-any-return,return-value]


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """What a checkpoint of the default training has inside."""
    return plain(compose([]))


def test_values_are_laid_over_and_the_rest_stays(base: dict[str, Any]) -> None:
    cfg = lay_over(base, {"data": {"batch_size": 3}, "inference": {"size": 16}}, {})
    assert (cfg.data.batch_size, cfg.inference.size) == (3, 16)
    wanted = {**base, "data": {**base["data"], "batch_size": 3}, "inference": {**base["inference"], "size": 16}}
    assert plain(cfg) == wanted


def test_the_checkpoints_own_tree_is_not_changed(base: dict[str, Any]) -> None:
    before = plain(compose([]))
    lay_over(base, {"data": {"batch_size": 3}}, {"inference": "slide"})
    assert base == before


def test_a_group_is_replaced_whole_before_its_values_are_set(base: dict[str, Any]) -> None:
    cfg = lay_over(base, {"inference": {"window_size": 16}}, {"inference": "slide"})
    assert cfg.inference._target_ == "segtrain.inference.slide.SlidingWindow"
    assert cfg.inference.window_size == 16
    assert lay_over(base, {}, {"data": "voc"}).name == "voc_unet_small"
    assert lay_over(base, {}, {"model": "lraspp"}).name == "shapes_lraspp"


def test_a_label_map_is_replaced_and_not_merged(base: dict[str, Any]) -> None:
    assert plain(lay_over(base, {"data": {"label_map": {0: 0, 9: 1}}}, {"data": "voc"}))["data"]["label_map"] == {
        0: 0,
        9: 1,
    }
    camvid = plain(compose(["data=camvid"]))
    assert plain(lay_over(camvid, {"data": {"label_map": {7: 0}}}, {}))["data"]["label_map"] == {7: 0}


def test_references_stay_references(base: dict[str, Any]) -> None:
    cfg = lay_over(base, {"inference": {"size": "${data.crop_size}"}}, {})
    assert plain(cfg)["inference"]["size"] == "${data.crop_size}"
    assert cfg.inference.size == 64


@pytest.mark.parametrize(
    ("extra", "choices", "found"),
    [
        ({"data": {"bath_size": 3}}, {}, "there is no config key 'data.bath_size'"),
        ({"inference": {"window_size": 3}}, {}, "there is no config key 'inference.window_size'"),
        ({"dat": {"batch_size": 3}}, {}, "there is no config key 'dat'"),
        ({}, {"inference": "slid"}, "there is no 'slid' in the group 'inference'"),
        ({}, {"experiment": "unet_pet"}, "experiment=unet_pet cannot be laid over a checkpoint"),
        ({}, {"debug": "fast"}, "debug=fast cannot be laid over a checkpoint"),
    ],
)
def test_what_cannot_be_laid_over(base: dict[str, Any], extra: Any, choices: Any, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_over(base, extra, choices)
    assert caught.value.found == found


def test_a_commands_own_keys_pass_and_all_others_are_hidden_from_hydra() -> None:
    argv = [
        "checkpoint=a.pt",
        "split=test",
        "data.root=/x",
        "data=voc",
        "inference={size: 3}",
        "hydra.run.dir=r",
        "-m",
    ]
    assert split_overrides("evaluate", argv) == [
        "checkpoint=a.pt",
        "split=test",
        "++over.data.root=/x",
        "++choices.data=voc",
        "++over.inference={size: 3}",
        "hydra.run.dir=r",
        "-m",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_keys_of_a_composition_root_are_those_that_composing_it_gives(command: str) -> None:
    assert root_keys(command) - {"hydra"} == set(compose([], command)) - set(groups())
    assert "hydra" in root_keys(command)
    assert command == "train" or not set(compose([], command)) & set(groups()), "a group would be hidden from Hydra"


@pytest.mark.parametrize("argument", ["splt=val", "dta.root=/x", "+modle=unet", "~trainer.epochs", "~data"])
def test_a_typo_beside_a_checkpoint_is_found_before_the_checkpoint_is(argument: str) -> None:
    with pytest.raises(ConfigError):
        split_overrides("evaluate", ["checkpoint=/nowhere.pt", argument])
