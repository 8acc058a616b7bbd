"""The GPU path without a GPU: tensors are where they must be, and the host waits only where it is said to.

What `fake_cuda` cannot see: wrong numbers; kernels that CUDA lacks, or that refuse a type, a layout or deterministic
mode; memory and its end; pinning, streams and events; several GPUs; torch.compile; what torch.cuda itself answers. That
needs a GPU: -m gpu.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, FakeCuda, HostWaitsError, believe, moved
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from segtrain import checkpoint, distributed, experiment
from segtrain.composition import compose
from segtrain.evaluator import evaluate
from segtrain.instances import InstanceBatch, Instances
from segtrain.losses.region import LovaszExtension
from segtrain.metrics.calibration import Calibration
from segtrain.normalization import Normalization
from segtrain.parts import make_task
from segtrain.rehearsal import rehearse
from segtrain.rng import rng_state
from segtrain.settings import Settings
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer
from segtrain.types import Batch, Record

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # as deepcopy does
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator"),
]
CONFIGS = Path(__file__).parents[1] / "configs"
PRECISIONS = [None, torch.bfloat16, torch.float16]
LAYOUTS = [torch.channels_last, torch.contiguous_format]
RULES = {"otsu", "double_peak", "morphology", "watershed", "slic_kmeans"}
"""Learn nothing and run on the CPU."""
DETECTORS = {"maskrcnn", "maskrcnn_v2"}
NETWORKS = sorted({file.stem for file in (CONFIGS / "model").glob("[!_]*.yaml")} - RULES - DETECTORS)
SMALLER = {
    "deeplabv2": ["model.backbone=resnet50"],
    "deeplabv3": ["model.backbone=resnet18", "model.multi_grid=null"],
    "deeplabv3_cascade": ["model.backbone=resnet50"],
    "deeplabv3_torchvision": ["model.backbone=resnet18"],
    "deeplabv3plus": ["model.backbone=resnet18"],
    "fcn_torchvision": ["model.backbone=resnet18"],
    "pspnet": ["model.backbone=resnet18"],
}
LOSSES = sorted({file.stem for file in (CONFIGS / "loss").glob("*.yaml")} - {"maskrcnn"})
WAITING = {
    "lovasz": {"aten::bincount", "aten::nonzero", "aten::_local_scalar_dense"},
    "ce_lovasz": {"aten::bincount", "aten::nonzero", "aten::_local_scalar_dense"},
    "border": {"aten::_to_copy"},
}
"""Losses that look at the target on the CPU, as their docstrings say."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    if torch.cuda.is_available():
        pytest.skip("here is a real one")
    believe(monkeypatch)
    with FakeCuda() as mode:
        yield mode


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cuda", dtype, enabled=dtype is not None)


# --- the rehearsal itself -------------------------------------------------------------------------------------------

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda tensor: tensor.sum().item(),
    "a list": lambda tensor: tensor.tolist(),
    "a truth": lambda tensor: bool(tensor.any()),
    "a comparison": lambda tensor: torch.equal(tensor, tensor),
    "to the main memory": lambda tensor: tensor.cpu(),
    "to the main memory as if nobody cared": lambda tensor: tensor.to("cpu", non_blocking=True),
    "from the main memory": lambda tensor: torch.zeros(3).to(tensor.device),
    "into a tensor": lambda tensor: tensor.copy_(torch.zeros(3)),
    "a new tensor of numbers": lambda tensor: torch.tensor([1.0, 2.0], device=tensor.device),
    "a mask as index": lambda tensor: tensor[tensor > 0],
    "a list as index": lambda tensor: tensor[[0, 2]],
    "a count": lambda tensor: torch.bincount(tensor.long(), minlength=9),
    "different values": lambda tensor: tensor.unique(),
}
WAITS_NOT: dict[str, Callable[[Tensor], Any]] = {
    "a copy that is not waited for": lambda tensor: torch.zeros(3).to(tensor.device, non_blocking=True),
    "a number into a tensor": lambda tensor: tensor.__setitem__(1, 2.0),
    "a number under a mask": lambda tensor: tensor.masked_fill(tensor > 0, 2.0),
    "a number of a choice": lambda tensor: torch.where(tensor > 0, tensor, 2.0),
    "a full tensor": lambda tensor: torch.full((3,), 2.0, device=tensor.device),
    "a tensor of the main memory": lambda _: torch.arange(3)[torch.tensor([True, False, True])].sum().item(),
}


@pytest.mark.parametrize("act", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("inference", [False, True])
def test_waiting_is_seen(cuda: FakeCuda, act: Callable[[Tensor], Any], inference: bool) -> None:
    tensor = torch.empty(3, device=CUDA)
    with cuda.watched(), torch.inference_mode(inference), pytest.raises(HostWaitsError):
        act(tensor)


@pytest.mark.parametrize("act", WAITS_NOT.values(), ids=WAITS_NOT)
def test_what_needs_no_waiting_is_let_through(cuda: FakeCuda, act: Callable[[Tensor], Any]) -> None:
    tensor = torch.empty(3, device=CUDA)
    with cuda.watched():
        act(tensor)


def test_devices_do_not_mix(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=CUDA) + torch.zeros(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_believes_in_the_gpu(cuda: FakeCuda, dtype: torch.dtype) -> None:
    image = torch.empty(1, 2, 3, 3, device=CUDA)
    with autocast(dtype):
        assert torch.nn.functional.conv2d(image, image).dtype == dtype
        assert image.sum().dtype == torch.float32


# --- networks --------------------------------------------------------------------------------------------------------


def runs(cuda: FakeCuda, overrides: list[str], dtype: torch.dtype | None, layout: torch.memory_format) -> None:
    """A training step's two passes and one of evaluation."""
    with torch.device("meta"):
        network = experiment.build_model(compose(["data=shapes", *overrides]))
    moved(network, layout)
    image = torch.empty(2, 3, 49, 41, device=CUDA, memory_format=layout)
    with cuda.watched():
        with autocast(dtype):
            outputs = network.train()(image)
            sum(logits.float().mean() for logits in outputs.values()).backward()
        with torch.inference_mode(), autocast(dtype):
            judged = network.eval()(image)
    for logits in (*outputs.values(), judged["out"]):
        assert logits.device == CUDA
        assert logits.shape == (2, 5, 49, 41)
        assert logits.dtype in (dtype or torch.float32, torch.float32)  # autocast resizes in float32
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(p.grad is not None and (p.grad.device, p.grad.dtype) == (CUDA, p.dtype) for p in learned.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_stays_on_the_gpu_and_never_waits(cuda: FakeCuda, name: str) -> None:
    runs(cuda, [f"model={name}", *SMALLER.get(name, [])], torch.bfloat16, torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "layout"), list(product(PRECISIONS, LAYOUTS)), ids=str)
def test_a_network_does_so_in_every_precision_and_layout(
    cuda: FakeCuda, name: str, dtype: torch.dtype | None, layout: torch.memory_format
) -> None:
    runs(cuda, [f"model={name}"], dtype, layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_does_so_in_deterministic_mode(cuda: FakeCuda, name: str) -> None:
    torch.use_deterministic_algorithms(True)  # torch then resizes by other operations on a GPU
    try:
        runs(cuda, [f"model={name}", *SMALLER.get(name, [])], torch.bfloat16, torch.channels_last)
    finally:
        torch.use_deterministic_algorithms(False)


# --- losses ----------------------------------------------------------------------------------------------------------


@cache
def settings_of(*overrides: str) -> Settings:
    return Settings(compose(list(overrides)))


def judges(cuda: FakeCuda, name: str, weighted: bool, dtype: torch.dtype, resolution: str = "full") -> None:
    """A loss and its gradient, of logits in `dtype`."""
    loss = settings_of("data=shapes", f"loss={name}", f"loss.resolution={resolution}").make("loss")
    if weighted:
        loss.use_class_weights(torch.arange(1.0, 6.0))
    loss.to(CUDA)
    size = (17, 13) if resolution == "full" else (5, 4)
    outputs = {key: torch.empty(2, 5, *size, device=CUDA, dtype=dtype, requires_grad=True) for key in ("out", "aux")}
    target = torch.empty(2, 17, 13, dtype=torch.int64, device=CUDA)
    before = len(cuda.waits)
    counts = loss.counts(target)
    with autocast(None if dtype == torch.float32 else dtype):
        terms = loss(outputs, target, counts)
    terms["loss"].backward()
    assert set(cuda.waits[before:]) == WAITING.get(name, set())
    assert all((term.device, term.dtype, term.shape) == (CUDA, torch.float32, ()) for term in terms.values())
    for logits in outputs.values():
        assert logits.grad is not None
        assert (logits.grad.device, logits.grad.dtype) == (CUDA, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_float32_of_the_gpu_and_waits_only_where_it_says_so(cuda: FakeCuda, name: str) -> None:
    judges(cuda, name, weighted=False, dtype=torch.bfloat16)
    if name not in ("dice", "lovasz", "tversky"):  # losses of regions weigh no classes
        judges(cuda, name, weighted=True, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("resolution", ["full", "native"])
def test_a_loss_does_so_in_every_precision(cuda: FakeCuda, name: str, resolution: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        judges(cuda, name, weighted=False, dtype=dtype, resolution=resolution)


@pytest.mark.parametrize("classes", [[1, 3], range(5)])
def test_lovasz_waits_no_more_once_it_knows_the_classes(cuda: FakeCuda, classes: list[int] | range) -> None:
    probs = torch.empty(2, 5, 17, 13, device=CUDA, requires_grad=True)
    target = torch.empty(2, 17, 13, dtype=torch.int64, device=CUDA)
    with cuda.watched():
        LovaszExtension.apply(probs, target, classes).backward()
    assert probs.grad is not None
    assert probs.grad.device == CUDA


# --- training --------------------------------------------------------------------------------------------------------

SMALL = ["data=shapes", "model=unet", "model.base_channels=4", "model.depth=2"]
RUN = [
    *SMALL,
    "debug=fast",
    "data.size=32",
    "data.crop_size=32",
    "data.num_workers=0",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.forecast=false",
]
OPTIMIZERS = ["sgd", "adamw", "rmsprop"]
# Every pair of two values occurs: ema, grad_clip, channels_last, accumulate, precision, optimizer.
PAIRS = [
    ("null", "null", "false", 1, None, "sgd"),
    ("null", "null", "true", 2, torch.bfloat16, "adamw"),
    ("0.99", "1.0", "false", 1, torch.bfloat16, "rmsprop"),
    ("0.99", "1.0", "true", 2, None, "sgd"),
    ("null", "1.0", "true", 1, torch.bfloat16, "sgd"),
    ("0.99", "null", "false", 2, None, "adamw"),
]


class Silent(Tracker):
    def say(self, text: str = "") -> None:
        """Nobody listens."""


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> Callable[..., Trainer]:
    """A trainer whose model, task and optimizer are on the GPU, as for a person who has one."""

    def make(folder: Path, dtype: torch.dtype | None, *overrides: str) -> Trainer:
        monkeypatch.setattr(experiment, "join", lambda _: CUDA)
        monkeypatch.setattr(experiment, "amp_dtype", lambda *_: dtype)
        return experiment.build(compose([*RUN, *overrides]), folder=folder, tracker=Silent())

    return make


def batch(color: bool = False, size: tuple[int, int] = (32, 32)) -> Batch:
    """Two images in the main memory."""
    return Batch(
        image=torch.zeros(2, *size, 3, dtype=torch.uint8),
        target=torch.zeros(2, *size, dtype=torch.uint8),
        index=torch.arange(2),
        records=[Record("a"), Record("b")],
        color=torch.eye(3, 4).repeat(2, 1, 1) if color else None,
    )


def steps(cuda: FakeCuda, trainer: Trainer, accumulate: int) -> None:
    """Makes steps without a wait, and then looks at them."""
    cuda.rows = cuda.copied = 0  # nothing was wrong
    trainer.start_training()
    trainer.train_step([batch(color=True) for _ in range(accumulate)])  # the first makes what lasts
    with cuda.watched():
        for color in (True, False):
            trainer.train_step([batch(color) for _ in range(accumulate)])
    trainer.log()
    weights = [*trainer.model.parameters(), *trainer.model.buffers()]
    momenta = [value for state in trainer.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert momenta
    assert {one.device for one in (*weights, *momenta)} == {CUDA}


@pytest.mark.parametrize("setup", PAIRS, ids=str)
def test_no_step_waits_for_the_gpu(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path, setup: tuple[Any, ...]
) -> None:
    ema, clip, layout, accumulate, dtype, optimizer = setup
    options = [f"trainer.ema={ema}", f"trainer.grad_clip={clip}", f"trainer.channels_last={layout}"]
    trainer = build(tmp_path, dtype, *options, f"trainer.accumulate={accumulate}", f"optimizer={optimizer}")
    steps(cuda, trainer, accumulate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    list(product(["null", "0.99"], ["null", "1.0"], ["false", "true"], [1, 2], [None, torch.bfloat16], OPTIMIZERS)),
    ids=str,
)
def test_no_step_waits_however_it_is_set_up(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path, setup: tuple[Any, ...]
) -> None:
    test_no_step_waits_for_the_gpu(cuda, build, tmp_path, setup)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loss_scaler_waits_no_more_than_the_rest(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path, optimizer: str
) -> None:
    trainer = build(tmp_path, torch.float16, f"optimizer={optimizer}", "trainer.grad_clip=1.0")
    assert trainer.scaler.is_enabled()
    steps(cuda, trainer, 1)


def test_steps_that_may_be_skipped_mix_no_devices(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = build(tmp_path, None, "trainer.on_nonfinite=skip")
    cuda.copied = cuda.read = 0  # read at every step: no loss is made up that is none, and no fault
    trainer.start_training()
    trainer.train_step([batch()])
    trainer.log()
    assert cuda.waits


def test_steps_that_are_yet_to_be_judged_hold_no_images(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = build(tmp_path, None, "trainer.log_every=100")
    trainer.start_training()
    on_gpu: list[weakref.ref[Batch]] = []
    to = Batch.to

    def noted(self: Batch, device: torch.device) -> Batch:
        found = to(self, device)
        on_gpu.append(weakref.ref(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "to", noted)
        for _ in range(3):
            trainer.train_step([batch()])
    gc.collect()
    assert [one() for one in on_gpu] == [None] * 3


def test_a_checkpoint_without_a_loss_scaler_goes_on_under_one(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path
) -> None:
    cuda.rows = cuda.copied = 0
    first = build(tmp_path / "a", torch.bfloat16)
    state = pytree.tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, first.state())
    second = build(tmp_path / "b", torch.float16)
    second.restore({**state, "rng": [rng_state(CUDA)]})
    steps(cuda, second, 1)
    assert second.scaler.get_scale() > 0


def test_a_run_is_forecast_made_saved_and_resumed(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["optimizer=adamw", "trainer.ema=0.99", "trainer.accumulate=2", "trainer.log_every=1"]
    cuda.rows = cuda.copied = 0
    saved: list[dict[str, Any]] = []

    def keep(path: Path, state: dict[str, Any], *more: Path) -> None:
        saved.append(pytree.tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, state))

    monkeypatch.setattr(checkpoint, "save", keep)
    trainer = build(tmp_path, torch.bfloat16, *options)
    assert rehearse(trainer, auto=False).memory == 0
    assert trainer.fit()["epoch"] == 1
    resumed = build(tmp_path, torch.bfloat16, *options, "trainer.epochs=2")
    resumed.restore(saved[-1])
    steps(cuda, resumed, 2)


def test_a_save_asks_once_whether_the_state_is_finite(
    cuda: FakeCuda, build: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = build(tmp_path, None, "optimizer=adamw")
    steps(cuda, trainer, 1)
    before, cuda.copied = len(cuda.waits), 0
    trainer.guard.check_state(trainer.model, trainer.optimizer)
    assert len(cuda.waits) - before == 1


def test_ranks_on_gpus_add_up_numbers_of_the_main_memory_on_their_gpus(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(distributed.dist, "all_reduce", reduced.append)
    numbers = torch.zeros(3, dtype=torch.float64)
    assert distributed.sum_(numbers) is numbers
    assert numbers.device.type == "cpu"
    assert numbers.tolist() == [1.0, 1.0, 1.0]  # what came back, which is made up here
    assert [one.device for one in reduced] == [CUDA]
    there = torch.zeros(2, device=CUDA)
    assert distributed.sum_(there) is there
    assert reduced[1] is there


# --- evaluation ------------------------------------------------------------------------------------------------------

PLUS = ["model=deeplabv3plus", "model.backbone=resnet18"]
SLIDE = ["inference=slide", "inference.window_size=48"]
PROTOCOLS = {
    "whole": [*PLUS],
    "whole, resized": [*SMALL[1:], "inference.size=48"],
    "scales and mirrored": [*SMALL[1:], "inference.flip=true", "inference.scales=[0.5,1.0]"],
    "slide": [*SMALL[1:], *SLIDE],
    "slide, mirrored": [*SMALL[1:], *SLIDE, "inference.flip=true"],
    "tile": [
        "model=unet_valid",
        "model.base_channels=4",
        "model.depth=2",
        "inference=tile",
        "inference.window_size=32",
    ],
}


def parts(overrides: list[str]) -> tuple[nn.Module, Any]:
    """Network and task on the GPU."""
    cfg = compose(["data=shapes", *overrides])
    settings = Settings(cfg)
    with torch.device("meta"):
        network = experiment.build_model(cfg)
    task = make_task(settings, None, list("abcde"), [[0, 0, 0]] * 5, settings.make("inference"))
    return moved(network).eval(), task.to(CUDA, torch.channels_last)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_images_are_judged_without_a_wait(cuda: FakeCuda, protocol: list[str]) -> None:
    network, task = parts(protocol)
    meters = [task.meter(losses=losses) for losses in (False, True)]
    with cuda.watched(), torch.inference_mode(), autocast(torch.bfloat16):
        images = batch(size=(70, 90)).to(CUDA)
        labels = task.predict(network, images.image)
        for meter in (*meters, *meters):  # a second batch is added to the first
            meter.update(network, images)
    assert (labels.device, labels.dtype, labels.shape) == (CUDA, torch.uint8, (2, 70, 90))


def test_a_whole_evaluation_reads_its_scores_at_the_end(cuda: FakeCuda) -> None:
    network, task = parts(SMALL[1:])
    cuda.copied = 0

    def waits_after(count: int) -> int:
        before = len(cuda.waits)
        evaluate(network, [batch()] * count, task, CUDA, precision=lambda: autocast(None))
        return len(cuda.waits) - before

    assert waits_after(5) == waits_after(1)


def test_metrics_of_single_images_mix_no_devices(cuda: FakeCuda) -> None:
    network, task = parts(SMALL[1:])
    meter = task.meter([Calibration()])
    with torch.inference_mode():
        meter.update(network, batch().to(CUDA))


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize(("dtype", "layout"), list(product([torch.uint8, torch.float32], LAYOUTS)), ids=str)
def test_images_are_normalized_where_they_lie(
    cuda: FakeCuda, color: bool, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    normalize = Normalization([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).to(CUDA, layout)
    with cuda.watched(), autocast(torch.bfloat16):
        images = batch(color).to(CUDA)
        ready = normalize(images.image.to(dtype), images.color)
    assert (ready.device, ready.dtype, ready.shape) == (CUDA, torch.float32, (2, 3, 32, 32))
    assert ready.is_contiguous(memory_format=layout)


# --- objects ---------------------------------------------------------------------------------------------------------


def objects() -> InstanceBatch:
    """Two images with two objects each, in the main memory."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 1:30, 1:30], masks[1, 5:50, 5:40] = 1, 1
    boxes = torch.tensor([[1.0, 1.0, 30.0, 30.0], [5.0, 5.0, 40.0, 50.0]])
    crowd = torch.zeros(2, dtype=torch.bool)
    area, ids = masks.sum((1, 2)).double(), torch.arange(2)
    truth = Instances(masks=masks, boxes=boxes, labels=torch.tensor([1, 2]), crowd=crowd, area=area, ids=ids)
    image = [torch.zeros(64, 64, 3, dtype=torch.uint8)] * 2
    return InstanceBatch(image=image, target=[truth, truth], index=torch.arange(2), records=[Record("a"), Record("b")])


def test_a_detector_mixes_no_devices(cuda: FakeCuda) -> None:
    # It waits by its nature: for masks of boxes, and for how many are left after suppression.
    sizes = ["model.backbone=resnet18", "model.min_size=64", "model.max_size=64"]
    network, task = parts(["data=shapes_instances", "model=maskrcnn", *sizes])
    images = objects().to(CUDA)
    cuda.read = 0  # no box is degenerate
    with autocast(torch.bfloat16):
        losses = task.losses(network.train(), images, task.counts(images))
    losses["loss"].backward()
    assert all((term.device, term.dtype) == (CUDA, torch.float32) for term in losses.values())
    assert all(p.grad is not None and p.grad.device == CUDA for p in network.parameters())
    with torch.inference_mode(), autocast(torch.bfloat16):
        task.meter().update(network.eval(), images)
