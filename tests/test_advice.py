"""What a run says of its waiting: who waits is told what helps, by an estimate that the numbers bear out."""

from __future__ import annotations

import pytest

from segtrain.advice import Waiting


def waiting(**changes: float) -> Waiting:
    """100 images: the network takes 1 s, two workers together 8 s of reading and 2 s of augmenting."""
    settings = {"images": 100, "seconds": 5.0, "waited": 4.0, "load": 8.0, "augment": 2.0}
    settings |= {"workers": 2, "cores": 8, "cached": False, "shared": False} | changes
    return Waiting(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
def test_a_tenth_is_no_news(share: float) -> None:
    assert waiting(waited=5 * share).advice() is None


def test_more_workers_and_a_cache_are_named_with_what_they_bring() -> None:
    advice = waiting().advice()
    assert advice is not None
    assert "80%" in advice
    assert "100.0 ms" in advice
    # Eight workers: 10 s / 8 = 1.25 s, more than the network's 1 s. A cache: 2.16 s of work by two workers, 1.08 s.
    assert waiting().gain(8, cached=False) == pytest.approx(4.0)
    assert waiting().gain(2, cached=True) == pytest.approx(5 / 1.08)
    assert advice.index("data.cache=disk (or ram) about 4.6x") < advice.index("data.num_workers=8 about 4.0x")


def test_nobody_is_faster_than_the_network() -> None:
    assert waiting().gain(1000, cached=True) == pytest.approx(5.0)


def test_no_more_workers_than_cores_and_no_more_than_help() -> None:
    assert "num_workers" not in str(waiting(cores=2).advice())
    assert "num_workers=4" in str(waiting(load=1.0, augment=2.0, seconds=1.5, waited=0.5, cores=64).advice())


def test_a_cache_that_is_there_is_not_advised() -> None:
    advice = waiting(cached=True, cores=2).advice()
    assert advice is not None
    assert "data.cache" not in advice
    assert "smaller data.crop_size" in advice


def test_a_process_that_reads_for_itself_adds_reading_to_the_network() -> None:
    alone = waiting(workers=0, seconds=11.0, waited=10.0)
    assert alone.gain(0, cached=False) == pytest.approx(1.0)
    assert "data.num_workers=" in str(alone.advice())


def test_an_epoch_without_images_has_no_advice() -> None:
    assert waiting(images=0).advice() is None


def test_waiting_that_reading_does_not_explain_promises_nothing() -> None:
    advice = waiting(load=0.1, augment=0.1).advice()
    assert advice is not None
    assert "more than reading and augmenting take" in advice
    assert "x" not in advice.split("cores): ")[1].replace("exp", "")


@pytest.mark.parametrize(("workers", "cores"), [(4, 6), (8, 12), (1, 3)])
def test_all_cores_are_named_where_they_help_and_are_no_power_of_two(workers: int, cores: int) -> None:
    slow = waiting(workers=workers, cores=cores, load=60.0, augment=20.0, seconds=80.0 / workers, waited=60.0 / workers)
    assert f"data.num_workers={cores}" in str(slow.advice())


def test_workers_take_the_time_of_a_network_on_the_same_cores() -> None:
    beside, same = waiting(cores=2), waiting(cores=2, shared=True)
    assert same.gain(2, cached=True) == pytest.approx(5 / (1 + 2.16 / 2))
    assert same.gain(2, cached=True) < beside.gain(2, cached=True)
