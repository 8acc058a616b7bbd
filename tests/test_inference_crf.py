"""`inference.crf=true`: after any protocol, for evaluation and predict alike, at the image's own size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segtrain.data.reading import read_image
from segtrain.errors import ConfigError
from segtrain.experiment import compose, from_checkpoint
from segtrain.inference.base import ImageInference
from segtrain.inference.slide import SlidingWindow
from segtrain.inference.whole import WholeImage
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.pixel import CrossEntropy
from segtrain.postprocess.crf import DenseCRF, ExactCRF, FullyConnectedCRF
from segtrain.settings import Settings
from segtrain.tasks.semantic import SemanticTask

EXACT = "inference.crf_settings._target_=segtrain.postprocess.crf.ExactCRF"
ON = ("inference.crf=true", EXACT)


def scores_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)


# --- through the program -------------------------------------------------------------------------------------------


def test_evaluation_scores_the_refined_labels(door: Any, trained: Any, tmp_path: Path) -> None:
    done = door("evaluate", f"checkpoint={trained.best}", "hydra.run.dir=crf", *ON)
    assert done.code == 0, done.err
    plain, refined = scores_of(trained.folder), scores_of(tmp_path / "crf")
    assert np.sum(refined["confusion"]) == np.sum(plain["confusion"])
    assert refined["confusion"] != plain["confusion"]
    assert refined["loss"] != plain["loss"]

    crf = from_checkpoint(trained.best, over={"inference": {"crf": True, "crf_settings": {"_target_": exact_name()}}})
    bare = from_checkpoint(trained.best)
    dataset = bare.dataset("val")
    counted = np.zeros((5, 5), np.int64)
    for index in range(len(dataset)):
        image, target, _ = dataset[index]
        with torch.inference_mode():
            batch = torch.from_numpy(image)[None]
            wanted = ExactCRF()(batch, bare.task.logits(bare.model, batch))[0].argmax(0).numpy()
        assert np.array_equal(crf.predict(image), wanted)
        np.add.at(counted, (target[target != 255], wanted[target != 255]), 1)
    assert counted.tolist() == refined["confusion"]


def exact_name() -> str:
    return f"{ExactCRF.__module__}.{ExactCRF.__qualname__}"


def test_the_lattice_is_the_default(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="the extra crf is not installed")
    done = door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=lattice", "inference.crf=true")
    assert done.code == 0, done.err
    door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=exact", *ON)
    lattice, exact = (np.array(scores_of(tmp_path / name)["confusion"]) for name in ("lattice", "exact"))
    assert 0 < np.abs(lattice - exact).sum() / 2 < 0.05 * exact.sum()


def test_batches_do_not_matter(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    for name, extra in (("one", "data.batch_size=1"), ("three", "data.batch_size=3")):
        done = door("evaluate", f"checkpoint={checkpoint}", f"hydra.run.dir={name}", *ON, extra)
        assert done.code == 0, done.err
    assert scores_of(tmp_path / "one")["confusion"] == scores_of(tmp_path / "three")["confusion"]


def test_predict_writes_the_refined_labels(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
    Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    masks = {}
    for name, extra in (("plain", ()), ("crf", (*ON, "inference.crf_settings.gaussian_weight=6"))):
        done = door("predict", f"checkpoint={checkpoint}", "input=a.png", f"hydra.run.dir={name}", *extra)
        assert done.code == 0, done.err
        with Image.open(tmp_path / name / "masks/a.png") as mask:
            masks[name] = np.array(mask)
    bare = from_checkpoint(checkpoint)
    batch = torch.from_numpy(read_image(tmp_path / "a.png"))[None]
    with torch.inference_mode():
        wanted = ExactCRF(gaussian_weight=6)(batch, bare.task.logits(bare.model, batch))[0].argmax(0)
    assert np.array_equal(masks["crf"], wanted.numpy())
    assert not np.array_equal(masks["crf"], masks["plain"])


def test_the_best_epoch_of_a_training_is_chosen_by_it(door: Any, fast: list[str], tmp_path: Path) -> None:
    done = door(*fast, *ON, "hydra.run.dir=run")
    assert done.code == 0, done.err
    door("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=same")
    door("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=off", "inference.crf=false")
    assert scores_of(tmp_path / "run")["confusion"] == scores_of(tmp_path / "same")["confusion"]
    assert scores_of(tmp_path / "run")["confusion"] != scores_of(tmp_path / "off")["confusion"]


# --- without the package -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_package")
def test_a_missing_package_stops_the_run_before_an_image_is_read(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = ("data=voc", "data.root=/nowhere", "data.classes=[a,b,c,d,e]", "data.palette=null")
    assert door("evaluate", f"checkpoint={checkpoint}", *elsewhere).code == 3
    for argv in (
        ("evaluate", f"checkpoint={checkpoint}", *elsewhere),
        ("predict", f"checkpoint={checkpoint}", f"input={__file__}"),
    ):
        done = door(*argv, "inference.crf=true", "hydra.run.dir=run")
        assert done.code == 2, done.err
        assert "error[config] inference.crf=true needs pydensecrf, which cannot be imported" in done.err
        assert "pip install -e '.[crf]'" in done.err
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.usefixtures("no_package")
def test_training_without_the_package_makes_no_step(door: Any, fast: list[str], tmp_path: Path) -> None:
    done = door(*fast, "inference.crf=true", "hydra.run.dir=run")
    assert done.code == 2, done.err
    assert "needs pydensecrf" in done.err
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("extra", [(), ("inference=slide",), ("inference.crf_settings.bilateral_rgb=5",)])
def test_without_crf_the_package_is_not_needed(door: Any, trained: Any, tmp_path: Path, extra: tuple[str, ...]) -> None:
    done = door("evaluate", f"checkpoint={trained.best}", "hydra.run.dir=run", *extra)
    assert done.code == 0, done.err
    if "inference=slide" not in extra:
        assert scores_of(tmp_path / "run")["confusion"] == scores_of(trained.folder)["confusion"]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "block"),
    [
        ("inference.crf=1", "inference.crf=1|boolean"),
        ("inference.crf_settings.bilateral_sigma=-67", "inference.crf_settings.bilateral_sigma=-67|0.1"),
        ("inference.crf_settings.gaussian_weight=-1", "inference.crf_settings.gaussian_weight=-1|equal to 0"),
        ("inference.crf_settings.iterations=0", "inference.crf_settings.iterations=0|greater than 0"),
        ("inference.crf_settings.normalization=symetric", "did you mean inference.crf_settings.normalization=symm"),
        ("inference.crf_settings.sigma=3", "there is no config key 'inference.crf_settings.sigma'"),
        ("inference.crf_settings._target_=segtrain.postprocess.crf.Dense", "has no 'Dense'|DenseCRF?"),
        ("inference.crf_settings._target_=os.system", "is not a class or function of an allowed package"),
        ("inference.crf_settings=null", "crf=true with inference.crf_settings=None|configs/inference/_crf.yaml"),
        ("inference.crf_settings=5", "crf=true with inference.crf_settings=5|configs/inference/_crf.yaml"),
        ("inference.crf_settings._target_=segtrain.postprocess.crf.FullyConnectedCRF", "abstract"),
    ],
)
def test_wrong_values_stop_with_exit_2(door: Any, checkpoint: Path, override: str, block: str) -> None:
    on = () if override.startswith("inference.crf=") else ("inference.crf=true",)
    done = door("evaluate", f"checkpoint={checkpoint}", *on, override, "hydra.run.dir=run")
    assert done.code == 2, done.out + done.err
    for part in block.split("|"):
        assert part in done.err


def test_an_image_too_large_for_the_exact_one_stops_with_the_fix(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    done = door("predict", f"checkpoint={checkpoint}", "input=a.png", "hydra.run.dir=run", *ON)
    assert done.code == 2, done.err
    assert "an image of 60x80 pixels for the exact CRF" in done.err
    assert "segtrain.postprocess.crf.DenseCRF" in done.err


@pytest.mark.parametrize("protocol", ["whole", "slide", "tile"])
def test_every_protocol_carries_the_settings_of_the_file(protocol: str) -> None:
    settings = Settings(compose([f"inference={protocol}"]))
    built = settings.make("inference")
    assert built.crf is None, "off unless asked for"
    node = settings.node["inference"]["crf_settings"]
    assert {**node, "_target_": None} == {**vars(DenseCRF()), "_target_": None}, "the file and the class agree"


# --- the seam ------------------------------------------------------------------------------------------------------


class Recorded(FullyConnectedCRF):
    """Keeps what it is given and turns class 0 into class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def log_q(self, probs: Tensor, rgb: Tensor) -> Tensor:
        self.seen.append((probs.clone(), rgb.clone()))
        return probs.flip(0).log()


class Pointwise(nn.Module):
    """1x1 convolution to two classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(image)}


def task(inference: Any, channels: int = 3) -> SemanticTask:
    return SemanticTask(
        loss=SegmentationLoss(terms={"ce": CrossEntropy()}),
        classes=["a", "b"],
        palette=[[0, 0, 0]] * 2,
        mean=[0.4] * channels,
        std=[0.2] * channels,
        inference=inference,
    )


PROTOCOLS: list[tuple[type[ImageInference], dict[str, Any]]] = [
    (WholeImage, {}),
    (WholeImage, {"size": [6, 20], "scales": [0.5, 1.0], "flip": True}),
    (SlidingWindow, {"window_size": 5, "window_stride": 3}),
    (SlidingWindow, {"window_size": [4, 6], "size": 9, "flip": True}),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("protocol", "given"), PROTOCOLS)
@torch.inference_mode()
def test_the_crf_sees_the_image_itself_and_the_averaged_probabilities(
    protocol: type[ImageInference], given: dict[str, Any], channels: int
) -> None:
    image = torch.randint(0, 256, (2, 11, 13, channels), dtype=torch.uint8)
    model, crf = Pointwise(channels), Recorded()
    plain = task(protocol(**given), channels).logits(model, image)
    refining = task(protocol(**given, crf=True, crf_settings=crf), channels)
    refined = refining.logits(model, image)
    assert len(crf.seen) == 2
    for index, (probs, rgb) in enumerate(crf.seen):
        assert torch.allclose(probs, plain[index].softmax(0), atol=1e-6)
        assert torch.equal(rgb, image[index].expand(11, 13, 3))
    assert torch.allclose(refined.softmax(1), plain.softmax(1).flip(1), atol=1e-4)  # clipped at 1e-5
    assert torch.equal(refining.predict(model, image), 1 - task(protocol(**given), channels).predict(model, image))


@torch.inference_mode()
def test_off_it_returns_the_very_logits() -> None:
    logits, image = torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4, 3)
    crf = Recorded()
    assert WholeImage(crf=False, crf_settings=crf).refine(image, logits) is logits
    assert WholeImage().refine(image, logits) is logits
    assert crf.seen == []


@torch.inference_mode()
def test_a_plain_function_is_a_protocol_too() -> None:
    def direct(model: nn.Module, image: Tensor) -> Tensor:
        out: Tensor = model(image)["out"]
        return out

    image, model = torch.randint(0, 256, (1, 5, 5, 3), dtype=torch.uint8), Pointwise(3)
    assert torch.equal(task(direct).logits(model, image), task(WholeImage()).logits(model, image))


def test_the_crf_is_prepared_when_the_protocol_is_built() -> None:
    class Missing(Recorded):
        def prepare(self) -> None:
            raise ConfigError("nothing here")

    assert WholeImage(crf_settings=Missing()).crf is None
    for protocol in (WholeImage, lambda **given: SlidingWindow(window_size=4, **given)):
        with pytest.raises(ConfigError, match="nothing here"):
            protocol(crf=True, crf_settings=Missing())


def test_crf_without_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crf=true with inference\.crf_settings=None"):
        WholeImage(crf=True)
    with pytest.raises(ConfigError, match=r"crf=false with inference\.crf_settings=3"):
        WholeImage(crf_settings=3)  # type: ignore[arg-type]
