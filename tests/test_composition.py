"""From overrides to one config tree, and values that are printed to be pasted as overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from segtrain.composition import COMMANDS, compose, config_dir, groups, leaf_keys, run_id
from segtrain.errors import ConfigError
from segtrain.run_folder import RunFolder, override


def test_the_config_files_are_those_of_this_source_tree() -> None:
    assert config_dir() == Path(__file__).parents[1] / "configs"
    assert {f"{command}.yaml" for command in COMMANDS} == {path.name for path in config_dir().glob("*.yaml")}


def test_options_that_start_with_an_underscore_are_no_options() -> None:
    assert (config_dir() / "model" / "_model.yaml").is_file()
    assert not [name for options in groups().values() for name in options if name.startswith("_")]


def test_the_name_is_that_of_the_data_and_the_model() -> None:
    assert compose([]).name == "shapes_unet_small"
    assert compose(["data=voc", "model=lraspp"]).name == "voc_lraspp"
    assert compose(["experiment=unet_pet"]).name == "pet_unet"
    assert compose(["name=mine"]).name == "mine"


def test_the_command_line_comes_after_the_experiment_and_the_experiment_after_the_groups() -> None:
    assert compose(["model=unet_small", "optimizer=rmsprop"]).optimizer.lr == 1e-4
    assert compose(["experiment=unet_pet"]).optimizer.lr == 1e-3
    assert compose(["experiment=unet_pet", "optimizer.lr=0.5"]).optimizer.lr == 0.5
    assert compose(["optimizer.lr=0.5", "experiment=unet_pet"]).optimizer.lr == 0.5


def test_hydras_own_node_is_not_part_of_the_config() -> None:
    assert "hydra" not in compose([])
    assert "hydra" not in compose([], "evaluate")


def test_two_runs_of_one_second_have_two_names() -> None:
    ids = {run_id() for _ in range(20)}
    assert len(ids) > 15
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", name) for name in ids)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("epoch=3", "trainer.epochs"),
        ("trainer.epoch=3", "trainer.epochs"),
        ("data.bath_size=3", "data.batch_size"),
        ("lr=3", "optimizer.lr"),
        ("modle=unet", "model"),
    ],
)
def test_a_key_that_does_not_exist_is_named_with_the_nearest_that_does(override: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert caught.value.found == f"there is no config key '{override.split('=')[0]}'"
    assert caught.value.fix == f"did you mean {near}?"


def test_the_nearest_key_is_looked_for_in_the_options_that_were_chosen() -> None:
    with pytest.raises(ConfigError, match=r"model\.base_chanels") as caught:
        compose(["model=unet", "model.base_chanels=3"])
    assert caught.value.fix == "did you mean model.base_channels?"
    with pytest.raises(ConfigError, match=r"model\.bakbone") as caught:
        compose(["model=deeplabv3plus", "model.bakbone=resnet18"])
    assert caught.value.fix == "did you mean model.backbone?"


def test_a_key_far_from_all_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["zzzzzz=3"])
    assert caught.value.fix is None


def test_leaf_keys_hold_branches_too() -> None:
    assert list(leaf_keys({"a": {"b": 1, "c": {}}, "d": [1]})) == ["a", "a.b", "a.c", "d"]


@pytest.mark.parametrize(
    "value",
    ["runs/a", "o d=r (1)", "it's", "a,b", "[x]", "{a}", "null", "1", " a ", "back\\", "a\\'b", "ü €", "", "a: b", "#"],
)
def test_a_printed_value_is_read_back_as_it_is(value: str) -> None:
    word = override("hydra.run.dir", value)
    read = OverridesParser.create().parse_override(word)
    assert read.is_sweep_override() is False
    text = read.value()
    assert (text.text if isinstance(text, QuotedString) else text) == value
    assert shlex.split(RunFolder("train", None, [], ["--config-dir=my own"]).command_line("evaluate", word)) == [
        *("python", "-m", "segtrain", "evaluate", "--config-dir=my own"),
        word,
    ]


def test_a_plain_value_is_printed_plainly() -> None:
    assert override("hydra.run.dir", "outputs/train/a_b/2026-11-21_09-14-02-7f3a") == (
        "hydra.run.dir=outputs/train/a_b/2026-11-21_09-14-02-7f3a"
    )
