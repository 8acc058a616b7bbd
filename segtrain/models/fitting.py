"""One state_dict into one module: what it names must match whole, and the report says what stays new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from segtrain.errors import CheckpointError, listed
from segtrain.models.class_transfer import ClassMap, class_count, class_dims, differs_in_classes_only

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"
"""Absent from files older than PyTorch 0.4.1; read only by cumulative averages, which no network uses."""


@dataclass
class Fit:
    """One state_dict on its way into one module, and what had to be said about it.

    The steps before `load` take out of `state` what must not be loaded, mark as `new` what need not be there, and
    leave a note. `load` refuses whatever else does not match.
    """

    module: nn.Module
    state: State
    where: str
    notes: list[str] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    """Keys of the module that keep their fresh values."""

    def __post_init__(self) -> None:
        self.own: State = self.module.state_dict()
        self.state = dict(self.state)

    def drop_idle_aux(self) -> None:
        """An auxiliary head that the network does not have is of no use to it."""
        if not any(key.startswith("aux_classifier.") for key in self.own):
            self.drop("aux_classifier.")

    def drop(self, prefix: str) -> None:
        """Leaves out a part of the file that the module does without."""
        idle = [key for key in self.state if key.startswith(prefix)]
        for key in idle:
            del self.state[key]
        if idle:
            self.notes.append(f"{prefix.removesuffix('.')} dropped")

    def fit_classes(self, class_layers: Iterable[str], names: ClassMap | None) -> None:
        """Class layers by name where both sides have names; else new where their number differs."""
        notes: list[str] = []
        for layer in class_layers:
            theirs, ours = self.state.get(f"{layer}.weight"), self.own.get(f"{layer}.weight")
            if theirs is None or ours is None:
                continue
            dims = class_dims(self.module.get_submodule(layer), ours)
            if not differs_in_classes_only(theirs, ours, dims):
                continue  # made for another network: refused when loaded
            rows = self._rows_per_class(layer)
            before, after = class_count(theirs, dims) // rows, class_count(ours, dims) // rows
            if names is not None and (before, after) == (len(names.theirs), len(names.ours)):
                if not names.is_identity():
                    self._transfer(layer, names)
                    notes.append(names.report())
            elif before != after:
                self._leave_new(layer)
                notes.append(f"head new ({before} -> {after} classes)")
        self.notes += dict.fromkeys(notes)

    def _transfer(self, layer: str, names: ClassMap) -> None:
        if not names.rows:
            self._leave_new(layer)
            return
        for key in self._keys(layer):
            if key in self.state:
                dims = class_dims(self.module.get_submodule(layer), self.own[key])
                self.state[key] = names.transfer(self.state[key], self.own[key], dims, self._rows_per_class(layer))

    def _rows_per_class(self, layer: str) -> int:
        """Outputs of one class: one, but for layers that the network declares, such as four edges of a box."""
        declared: Mapping[str, int] = getattr(self.module, "rows_per_class", {})
        return declared.get(layer, 1)

    def _leave_new(self, layer: str) -> None:
        keys = self._keys(layer)
        self.new.update(keys)
        for key in keys:
            self.state.pop(key, None)

    def _keys(self, layer: str) -> list[str]:
        return [key for key in self.own if key.startswith(f"{layer}.")]

    def stage(self, layers: Iterable[str]) -> None:
        """Layers that a coarser network lacks stay new, and those that only it has are dropped."""
        staged = set(layers)
        same = {key for key, value in self.state.items() if key in self.own and value.shape == self.own[key].shape}
        mine = [key for key in self.own if _layer(key) in staged and key not in same | self.new]
        theirs = [key for key in self.state if _layer(key) in staged and key not in same]
        self.new.update(mine)
        for key in theirs:
            del self.state[key]
        for what, keys in (("new", mine), ("dropped", theirs)):
            if keys:
                self.notes.append(f"{what}: {_layers(keys)}")

    def leave_rest(self, whole: Iterable[str]) -> None:
        """Layers that the file does not know stay new, but for those under the prefixes `whole`."""
        known, wanted = {_layer(key) for key in self.state}, tuple(whole)
        rest = [key for key in self.own if _layer(key) not in known and not key.startswith(wanted)]
        self.new.update(rest)
        if rest:
            self.notes.append(f"new: {_layers(rest)}")

    def sum_input_channels(self) -> None:
        """Color weights for a gray image: their sum answers as if the image were repeated in each channel."""
        first = next((name for name, m in self.module.named_modules() if isinstance(m, nn.Conv2d)), "")
        theirs, ours = self.state.get(f"{first}.weight"), self.own.get(f"{first}.weight")
        if theirs is None or ours is None or theirs.ndim != 4 or ours.shape[1] != 1 or theirs.shape[1] != 3:
            return
        self.state[f"{first}.weight"] = theirs.sum(dim=1, keepdim=True)
        self.notes.append("first convolution summed over its 3 input channels")

    def load(self, what: str = "") -> str:
        """Checks, then copies; returns `loaded <tensors loaded>/<tensors of the module><what>, <notes>`.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape; nothing was loaded.
        """
        wanted = set(self.own) - self._match_counters()
        missing = [key for key in self.own if key in wanted - self.new - self.state.keys()]
        unexpected = [key for key in self.state if key not in self.own]
        misshaped = [
            f"{key} {tuple(value.shape)}, the network's {tuple(self.own[key].shape)}"
            for key, value in self.state.items()
            if key in self.own and value.shape != self.own[key].shape
        ]
        if missing or unexpected or misshaped:
            raise self._misfit(missing, unexpected, misshaped)
        self.module.load_state_dict({**self.own, **self.state})
        return ", ".join([f"loaded {len(self.state)}/{len(wanted)}{what}", *self.notes])

    def _match_counters(self) -> set[str]:
        """Which counters of ours need not be in the file; those in it of normalizations that are frozen here go."""
        for key in [key for key in self.state if key.endswith(COUNTER) and key not in self.own]:
            if _variance(key) in self.own:
                del self.state[key]
        missing = {key for key in self.own if key.endswith(COUNTER) and key not in self.state}
        if any(key.endswith(COUNTER) for key in self.state):  # the others are of layers that were frozen there
            return {key for key in missing if _variance(key) in self.state}
        return missing

    def _misfit(self, missing: list[str], unexpected: list[str], misshaped: list[str]) -> CheckpointError:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        lines = [f"{what}: {listed(keys, 3)}" for what, keys in found.items() if keys]
        only_aux = missing and all(key.startswith("aux_classifier.") for key in missing)
        return CheckpointError(
            "the weights do not fit the network, tensor by tensor: "
            + ", ".join(f"{len(keys)} {what}" for what, keys in found.items() if keys),
            where="\n".join([self.where, *lines]),
            expected=f"the {len(self.own)} tensors of {type(self.module).__name__}",
            fix="set model.aux=false: the file has no auxiliary head"
            if only_aux and not unexpected and not misshaped
            else "choose the model and model.backbone the file was made for, or model.weights=none",
        )


def _variance(counter: str) -> str:
    return counter.removesuffix(COUNTER) + "running_var"


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _layers(keys: Iterable[str]) -> str:
    """The layers of some keys, each once; many of one part under its name."""
    layers = list(dict.fromkeys(_layer(key) for key in keys))
    return listed(layers if len(layers) <= 6 else dict.fromkeys(name.split(".")[0] for name in layers))
