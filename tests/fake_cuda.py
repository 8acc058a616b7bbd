"""CUDA tensors without a GPU: shape, type, layout and device, and no values; and where the host would wait for them.

Tensors of the main memory are real. An operation on tensors of two devices raises, as it would on a GPU. The host waits
where torch's `set_sync_debug_mode` would warn: where a value is read, where a shape depends on values, and where a copy
from or to the main memory is not `non_blocking`. Torch does so unseen in `bincount`, for masks as indices, for indices
and values that lie in the main memory, and in `torch.tensor(..., device="cuda")`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostWaitsError(AssertionError):
    """The host would wait for the GPU."""


class FakeCuda(FakeTensorMode):
    """Operations on tensors of the main memory are made; of those on CUDA tensors only the result's form is found.

    `waits` names the operations at which the host would wait. While `watched`, the first of them raises. Elsewhere
    something is made up in place of values: `read` is what a number gives that is read, `copied` what a copy in the
    main memory is full of, `rows` how many places a mask has.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self.waits: list[str] = []
        self.read, self.copied, self.rows = 1, 1, 1
        self.is_watched = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Where the host must not wait."""
        self.is_watched = True
        try:
            yield
        finally:
            self.is_watched = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = pytree.tree_leaves((args, kwargs))
        fake = [one for one in flat if isinstance(one, FakeTensor)]
        if not fake and not any(isinstance(one, torch.device) and one.type == "cuda" for one in flat):
            return func(*args, **kwargs)
        if is_composite(func):  # in inference mode they come whole
            with self:
                return func.decompose(*args, **kwargs)
        if waits(func, args, kwargs):
            self.waits.append(func.name())
            if self.is_watched:
                raise HostWaitsError(f"{func} on {[(tuple(one.shape), one.dtype) for one in fake]}")
            with self:
                return self.made_up(func, args, kwargs)
        if func is aten._fused_sgd_.default:  # torch has no rule for the form of its result, which is none
            assert {one.device for one in flat if isinstance(one, Tensor)} == {CUDA}
            return None
        return super().__torch_dispatch__(func, types, args, kwargs)

    def made_up(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What to go on with after an operation that waits."""
        first: Tensor = args[0]
        if func is aten._to_copy.default and torch.device(kwargs["device"]).type == "cpu":
            return torch.full(first.shape, self.copied, dtype=kwargs.get("dtype") or first.dtype)
        if func is aten.copy_.default and first.device.type == "cpu":
            return first.fill_(self.copied)
        if func in COPIES:
            return func(*args, **{**kwargs, "non_blocking": True})
        if func is aten._local_scalar_dense.default:
            return torch.tensor(self.read, dtype=first.dtype).item()
        if func is aten.nonzero.default:
            return torch.empty(self.rows, first.ndim, dtype=torch.int64, device=CUDA)
        if func is aten.bincount.default:
            return torch.empty(args[2], dtype=torch.int64, device=CUDA)
        if func is aten.index.Tensor:
            return func(first, [place for one in args[1] for place in self.places(one)])
        if func.name() == "torchvision::nms":
            return torch.empty(self.rows, dtype=torch.int64, device=CUDA)
        raise NotImplementedError(f"nothing is made up for {func}")

    def places(self, index: Tensor | None) -> list[Tensor | None]:
        """Positions on the GPU in place of a mask, or of positions in the main memory."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [None if index is None else index.to(CUDA, non_blocking=True)]
        return [torch.empty(self.rows, dtype=torch.int64, device=CUDA) for _ in range(index.ndim)]


@cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others wherever it runs."""
    key = "CompositeImplicitAutograd"
    return func.namespace == "aten" and bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for the GPU at this operation."""
    if func in COPIES:
        into = func is aten.copy_.default
        source, target = args[into].device, args[0].device if into else kwargs.get("device") or args[0].device
        free = kwargs.get("non_blocking", False) or (into and len(args) > 2 and args[2])
        # Into the main memory without waiting is a race: nothing says when the values are there.
        return source.type != target.type and (target.type == "cpu" or not free)
    if func in INDEXED:
        places = [one for one in args[1] if one is not None]
        values = [] if func is aten.index.Tensor else [args[2]]
        masked = any(one.dtype in (torch.bool, torch.uint8) for one in places)
        return masked or any(one.device != args[0].device for one in (*places, *values))
    if func is aten.where.self:  # a tensor without dimensions may lie in the main memory, and is copied
        return len({one.device for one in args}) > 1
    return func.name() == "torchvision::nms" or bool(READS_VALUES & set(func.tags))


def backward(root: Tensor) -> None:
    """`root.backward()` node by node: torch's engine starts a thread per GPU and asks the driver."""
    grads: dict[Any, dict[int, Tensor]] = {root.grad_fn: {root.output_nr: torch.ones_like(root)}}
    with torch.no_grad():
        for node in reversed(followers_first(root.grad_fn)):
            noted = node._input_metadata
            found = {place: as_noted(grad, noted[place]) for place, grad in grads.pop(node, {}).items()}
            given = [found.get(place) for place in range(len(noted))]
            results = node.apply(*given) if isinstance(node, BackwardCFunction) else node(*given)
            results = results if isinstance(results, tuple) else (results,)
            for (following, place), grad in zip(node.next_functions, results, strict=False):
                if following is not None and grad is not None:
                    slot = grads.setdefault(following, {})
                    slot[place] = slot[place] + grad if place in slot else grad


def followers_first(root: Any) -> list[Any]:
    """The nodes of a graph, each after all that gradients go to from it."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((following, False) for following, _ in node.next_functions if following)]
    return order


def as_noted(grad: Tensor, noted: Any) -> Tensor:
    """What torch's engine makes of a gradient before a node gets it."""
    assert grad.device == noted.device, f"a gradient on {grad.device} of a tensor on {noted.device}"
    return grad.sum_to_size(noted.shape).to(noted.dtype)


def moved(module: nn.Module, layout: torch.memory_format = torch.channels_last) -> nn.Module:
    """A module built on `meta`, its parameters and buffers now on the GPU; what else it keeps stays where it is."""

    def placed(tensor: Tensor) -> Tensor:
        form = layout if tensor.ndim == 4 else torch.contiguous_format
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA, memory_format=form)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(placed(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = placed(buffer)
    return module


def believe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks the driver gets an answer: autocast and the loss scaler work, memory is never used, nobody draws."""
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "no GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
