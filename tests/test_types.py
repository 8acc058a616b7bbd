"""A batch keeps together what belongs together when it moves and when it is cut."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_parts_hold_every_sample_once_in_order_and_differ_by_one_at_most(size: int, count: int, color: bool) -> None:
    parts = batch(size, color).parts(count)
    assert len(parts) == min(size, count)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [int(i) for part in parts for i in part.index] == list(range(100, 100 + size))
    for part in parts:
        numbers = part.index - 100
        assert [record.name for record in part.records] == [f"r{int(i)}" for i in numbers]
        assert (part.image[:, 0, 0, 0] == numbers).all()
        assert (part.target[:, 0, 0] == numbers).all()
        assert (part.color is not None) == color
        assert part.color is None or (part.color[:, 0, 0] == numbers).all()
    assert sum(part.load_seconds for part in parts) == 1.5
    assert sum(part.augment_seconds for part in parts) == 0.25


@pytest.mark.parametrize("color", [True, False])
def test_a_moved_batch_has_all_that_it_had(color: bool) -> None:
    given = batch(3, color)
    moved = given.to(torch.device("meta"))
    assert {moved.image.device.type, moved.target.device.type, moved.index.device.type} == {"meta"}
    assert (moved.color is None) if not color else (moved.color is not None and moved.color.is_meta)
    assert (moved.records, moved.load_seconds, moved.augment_seconds) == (given.records, 1.5, 0.25)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_pinned_batch_is_pinned_whole() -> None:
    pinned = batch(3).pin_memory()
    assert pinned.color is not None
    assert all(tensor.is_pinned() for tensor in (pinned.image, pinned.target, pinned.color))
    assert (pinned.load_seconds, pinned.augment_seconds) == (1.5, 0.25)
