"""Training loops of other libraries on one tiny network, for `compare_peers.py`: each call trains `STEPS` steps."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from segtrain.benchmark.loops import Tiny

STEPS, BATCH, SIDE, CLASSES = 200, 2, 32, 5
IMAGES = torch.rand(STEPS * BATCH, 3, SIDE, SIDE)
TARGETS = torch.randint(0, CLASSES, (STEPS * BATCH, SIDE, SIDE))


class Pairs(Dataset[Any]):
    """Tensors that lie ready; `named`: as a dict, which transformers wants."""

    def __init__(self, named: bool = False) -> None:
        self.named = named

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> Any:
        pair = IMAGES[index], TARGETS[index]
        return {"pixel_values": pair[0], "labels": pair[1]} if self.named else pair


def loader() -> DataLoader[Any]:
    """Batches of the pairs in this process."""
    return DataLoader(Pairs(), batch_size=BATCH)


def bare() -> Callable[[], object]:
    """The shortest loop there is, with the same loader as the others."""

    def train() -> None:
        model = Tiny(CLASSES).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for image, target in loader():
            loss = F.cross_entropy(model(image)["out"], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def ours() -> Callable[[], object]:
    """This package's trainer on a dataset that lies ready, through its own loader."""
    from segtrain.benchmark.loops import MANY, make_trainer, run_epoch
    from segtrain.data.loader import TrainLoader
    from segtrain.experiment import compose
    from segtrain.settings import Settings
    from segtrain.tracking import RunTracker
    from segtrain.types import Record

    class Ready(Dataset[Any]):
        def __init__(self) -> None:
            self.images = (IMAGES * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            self.targets = TARGETS.to(torch.uint8).numpy()
            self.record = Record("ready")

        def __len__(self) -> int:
            return STEPS * BATCH

        def __getitem__(self, key: Any) -> Any:
            index = key[1] if isinstance(key, tuple) else key
            return self.images[index], self.targets[index], self.record

    folder = Path(tempfile.mkdtemp(prefix="segtrain-peers-"))
    words = ["optimizer=sgd", f"trainer.epochs={MANY}", "trainer.device=cpu"]
    batches = TrainLoader(Ready(), batch_size=BATCH, num_workers=0)
    settings = Settings(compose(words))
    trainer = make_trainer(settings, batches, torch.device("cpu"), folder, RunTracker(folder), Tiny(CLASSES))
    return lambda: run_epoch(trainer)


def lightning() -> Callable[[], object]:
    """Lightning with nothing but the loop."""
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tiny(CLASSES)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0])["out"], batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}

    def train() -> None:
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_model_summary=False, **quiet)
        trainer.fit(Module(), loader())

    return train


def transformers() -> Callable[[], object]:
    """transformers' Trainer without its logging and clipping."""
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging as talk

    talk.set_verbosity_error()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tiny(CLASSES)

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixel_values)["out"]
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def train() -> None:
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="segtrain-peers-"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        model = Wrapped()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        Trainer(model, arguments, train_dataset=Pairs(named=True), optimizers=(optimizer, None)).train()

    return train


def mmengine() -> Callable[[], object]:
    """mmengine's Runner without hooks."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Module(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tiny(CLASSES)

        def forward(self, image: Tensor, target: Tensor, mode: str = "loss") -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.model(image)["out"], target)}

    names = ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed", "runtime_info")

    def train() -> None:
        Runner(
            model=Module(),
            work_dir=tempfile.mkdtemp(prefix="segtrain-peers-"),
            train_dataloader=loader(),
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
            train_cfg={"by_epoch": True, "max_epochs": 1},
            default_hooks=dict.fromkeys(names),
            log_level="ERROR",
            experiment_name=f"peer{time.time_ns()}",
        ).train()

    return train


LOOPS: dict[str, Callable[[], Callable[[], object]]] = {
    "bare loop": bare,
    "Lightning, nothing but the loop": lightning,
    "transformers Trainer, no logging": transformers,
    "mmengine Runner, no hooks": mmengine,
    "segtrain Trainer, with its checks and curves": ours,
}
"""The others' times include making their trainer, once per `STEPS` steps."""
