"""A batch keeps together what belongs together when it moves and when it is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.instances import InstanceBatch, Instances
from segtrain.types import Batch, Record


def batch(size: int, color: bool = True) -> Batch:
    number = torch.arange(size)
    return Batch(
        image=number.to(torch.uint8).view(-1, 1, 1, 1).expand(size, 4, 5, 3).contiguous(),
        target=number.to(torch.uint8).view(-1, 1, 1).expand(size, 4, 5).contiguous(),
        index=number + 100,
        records=[Record(f"r{i}") for i in range(size)],
        color=number.float().view(-1, 1, 1).expand(size, 3, 4).contiguous() if color else None,
        load_seconds=1.5,
        augment_seconds=0.25,
    )


def objects(size: int, color: bool = True) -> InstanceBatch:
    """The same samples, each of another width and with one object whose id is its number."""
    same = batch(size, color)
    masks = [torch.ones(1, 4, 5 + number, dtype=torch.uint8) for number in range(size)]
    return InstanceBatch(
        image=[torch.full((4, 5 + number, 3), number, dtype=torch.uint8) for number in range(size)],
        target=[Instances.of(one, torch.ones(1).long(), ids=torch.tensor([n])) for n, one in enumerate(masks)],
        index=same.index,
        records=same.records,
        color=same.color,
        load_seconds=1.5,
        augment_seconds=0.25,
    )


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("whole", [batch, objects])
def test_parts_hold_every_sample_once_in_order_and_differ_by_one_at_most(
    whole: Callable[..., Any], size: int, count: int, color: bool
) -> None:
    given = whole(size, color)
    parts = given.parts(count)
    assert {type(part) for part in parts} == {type(given)}
    assert len(parts) == min(size, count)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [int(i) for part in parts for i in part.index] == list(range(100, 100 + size))
    for part in parts:
        numbers = (part.index - 100).tolist()
        assert [record.name for record in part.records] == [f"r{i}" for i in numbers]
        assert [int(one[0, 0, 0]) for one in part.image] == numbers
        assert [int(one.ids[0] if whole is objects else one[0, 0]) for one in part.target] == numbers
        assert (part.color is not None) == color
        assert part.color is None or part.color[:, 0, 0].tolist() == numbers
    assert sum(part.load_seconds for part in parts) == 1.5
    assert sum(part.augment_seconds for part in parts) == 0.25


@pytest.mark.parametrize("color", [True, False])
def test_a_moved_batch_has_all_that_it_had(color: bool) -> None:
    given = batch(3, color)
    moved = given.to(torch.device("meta"))
    assert {moved.image.device.type, moved.target.device.type} == {"meta"}
    assert moved.index.device.type == "cpu"  # a GPU would be waited for at each that is read
    assert (moved.color is None) if not color else (moved.color is not None and moved.color.is_meta)
    assert (moved.records, moved.load_seconds, moved.augment_seconds) == (given.records, 1.5, 0.25)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_pinned_batch_is_pinned_whole() -> None:
    pinned = batch(3).pin_memory()
    assert pinned.color is not None
    assert all(tensor.is_pinned() for tensor in (pinned.image, pinned.target, pinned.color))
    assert (pinned.load_seconds, pinned.augment_seconds) == (1.5, 0.25)
