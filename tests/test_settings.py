"""A config as checked plain data, without any data on disk."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import open_dict

from segtrain.composition import compose
from segtrain.errors import ConfigError
from segtrain.experiment import build_dataset
from segtrain.rng import seed_everything
from segtrain.settings import OTHER_KEYS, RUNTIME, Settings


def test_the_parts_are_the_groups_of_the_composition_root() -> None:
    assert set(compose([])) == {*RUNTIME, *OTHER_KEYS}


def test_the_tree_keeps_references_and_the_nodes_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGTRAIN_TEST_ROOT", "/somewhere")
    settings = Settings(compose(["data=voc", "data.root=${oc.env:SEGTRAIN_TEST_ROOT}"]))
    assert settings.node["data"]["root"] == "/somewhere"
    assert settings.tree["data"]["root"] == "${oc.env:SEGTRAIN_TEST_ROOT}"
    assert settings.node["model"]["num_classes"] == 21
    assert settings.tree["model"]["num_classes"] == "${data.num_classes}"


def test_keys_of_the_loader_do_not_reach_the_dataset_nor_the_datasets_the_loader() -> None:
    settings = Settings(compose(["data.batch_size=3", "data.size=40"]))
    assert settings.rider["data"].batch_size == 3
    assert "batch_size" not in settings.node["data"]
    assert settings.node["data"]["size"] == 40
    assert not hasattr(settings.rider["data"], "size")


def test_notes_that_yaml_keeps_for_itself_reach_nobody() -> None:
    settings = Settings(compose(["data=pet"]))
    assert "_targets" in settings.tree["data"]
    assert "_targets" not in settings.node["data"]


@pytest.mark.parametrize("part", [*RUNTIME, "augment", "trainer"])
@pytest.mark.parametrize("value", ["absent", None, 3])
def test_a_run_has_all_of_its_parts(part: str, value: Any) -> None:
    cfg = compose([])
    with open_dict(cfg):
        cfg.pop(part)
        if value != "absent":
            cfg[part] = value
    with pytest.raises(ConfigError, match=part) as caught:
        Settings(cfg)
    assert caught.value.fix == f"choose one with {part}=…"


@pytest.mark.parametrize(
    ("value", "found"),
    [("mypkg", "allow_targets=mypkg"), ("[1]", "allow_targets=[1]"), ("3", "allow_targets=3")],
)
def test_allowed_packages_are_a_list_of_names(value: str, found: str) -> None:
    # A bare word, read as a list, would allow packages named by its letters.
    with pytest.raises(ConfigError) as caught:
        Settings(compose([f"++allow_targets={value}"]))
    assert caught.value.found == found


@pytest.mark.parametrize("name", ["/etc/cron.d", "../../up", "a/../../b", 3])
def test_a_name_does_not_lead_out_of_outputs(name: Any) -> None:
    cfg = compose([])
    cfg.name = name
    with pytest.raises(ConfigError, match=f"name={name}"):
        Settings(cfg)
    cfg.name = "group/mine"
    assert Settings(cfg).name == "group/mine"


@pytest.mark.parametrize("key", ["crop_sise", "scale_rnge", "transform"])
def test_a_key_of_augment_that_nothing_uses_and_is_nearly_another(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'augment.{key}'"):
        Settings(compose([f"+augment.{key}=3"]))


def test_a_key_of_augment_that_is_a_name_for_the_users_own_transforms() -> None:
    Settings(compose(["+augment.strength=0.5", "augment.transforms.flip.p=${augment.strength}"]))
    Settings(compose(["~augment.transforms.scale_crop"]))  # leaves scale_range without use


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["data=pet", "data.target=forground"], "data.target=forground"),
        (["data.classes=null"], "data.classes=null"),
        (["data=pet", "data.target=[trimap]"], "data."),
    ],
)
def test_the_wrong_literal_is_named_and_not_what_follows_from_it(overrides: list[str], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(compose(overrides))
    assert caught.value.found.startswith(found)


def test_another_target_brings_other_keys() -> None:
    lraspp = "model._target_=torchvision.models.segmentation.lraspp_mobilenet_v3_large"
    node = Settings(compose(["model=torchvision", lraspp, "model.aux_loss=false"])).node["model"]
    assert node["num_classes"] == 5
    assert "weights" not in node, "the key is ours; the builder's own parameter of that name downloads"
    with pytest.raises(ConfigError, match=r"model\.base_channels is not a key of segtrain\.models\.lraspp\.LRASPP"):
        Settings(compose(["model._target_=segtrain.models.lraspp.LRASPP"]))


def test_torchvisions_weights_are_named_by_text() -> None:
    assert Settings(compose(["model=torchvision", "model.weights_backbone=DEFAULT"]))
    with pytest.raises(ConfigError) as caught:
        Settings(compose(["model=torchvision", "model.weights_backbone=DEFALT"]))
    assert caught.value.fix == "did you mean model.weights_backbone=DEFAULT?"


@pytest.mark.parametrize("key", ["trainer.seed", "data.data_seed"])
@pytest.mark.parametrize("seed", [-1, 2**63, 99999999999999999999])
def test_a_seed_that_no_generator_takes(key: str, seed: int) -> None:
    with pytest.raises(ConfigError, match=f"{key}={seed}"):
        Settings(compose([f"{key}={seed}"]))


def test_the_largest_seed_is_taken_by_every_generator() -> None:
    cfg = compose([f"trainer.seed={2**63 - 1}", f"data.data_seed={2**63 - 1}", "data.size=32", "data.crop_size=32"])
    seed_everything(Settings(cfg).options.seed + 1000)  # as the rank 1000 does
    image, target, _ = build_dataset(cfg, "train")[0]
    assert image.shape[:2] == target.shape == (32, 32)


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["~optimizer.lr", "~optimizer.betas"], "optimizer.lr is not set"),
        (["~optimizer.betas", "optimizer.lr=fast"], "optimizer.lr=fast"),
        (["~optimizer.betas", "optimizer.lr=null"], "optimizer.lr=null"),
    ],
)
def test_every_optimizer_needs_a_rate(overrides: list[str], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(compose(["optimizer._target_=torch.optim.Adam", *overrides]))
    assert caught.value.found == found
    Settings(compose(["optimizer._target_=torch.optim.Adam", "~optimizer.betas", "optimizer.lr=1e-3"]))


@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_inference_at_no_scale_is_refused(protocol: str) -> None:
    with pytest.raises(ConfigError, match=r"inference\.scales=\[\]"):
        Settings(compose([f"inference={protocol}", "inference.scales=[]"]))


@pytest.mark.parametrize("word", ["loss.terms=00", "loss.terms=abc", "model.normalize=3", "augment.transforms=5"])
def test_a_value_where_keys_belong_is_refused(door: Any, fast: list[str], word: str) -> None:
    done = door(*fast, word)
    assert done.code == 2, done.err
    assert f"error[config] {word.split('=')[0]}=" in done.err
