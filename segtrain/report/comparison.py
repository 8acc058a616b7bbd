"""Two or more runs side by side: scores, differences that can be trusted, and what the runs do not share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segtrain.report import charts
from segtrain.report.markup import Html, count, element, ends, number, percent, span_of
from segtrain.report.page import document
from segtrain.report.tables import Column, flat, head_row, scrolling, section, table

SURE = 0.05
"""A difference with a p-value below is marked."""


def comparison_page(
    runs: Sequence[Mapping[str, Any]],
    config_diff: Mapping[str, Sequence[object]],
    paired: Mapping[str, Mapping[str, Any]],
    title: str = "Comparison",
) -> str:
    """Runs side by side as one HTML file that needs nothing else.

    Args:
        runs: `{"name": …, "scores": as in metrics.json}`, at least two; the first is what others are compared to.
        config_diff: key -> its value in each run, for keys that differ.
        paired: name of a run -> `segtrain.metrics.bootstrap.paired(first, that run)`; runs without one are compared by
            their scores alone.
        title: the page's heading.

    Raises:
        ValueError: fewer than two runs, two of one name, or values that are not one per run.
    """
    names = [str(run["name"]) for run in runs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"a comparison needs two or more runs of different names, not {names}")
    uneven = [key for key, values in config_diff.items() if len(values) != len(names)]
    if uneven:
        raise ValueError(f"config_diff must have {len(names)} values per key, not so for {uneven}")
    sections = [
        _headline(runs),
        *[_differences(runs[0], run, paired.get(name)) for name, run in zip(names[1:], runs[1:], strict=True)],
        _differing("config", "What differs in the configs", names, config_diff),
        _differing("protocol", "What differs in the protocols", names, protocol_diff(runs)),
    ]
    contents = [("headline", "Scores"), (_key(runs[1]), "Differences"), ("config", "Config"), ("protocol", "Protocol")]
    return document(title, f"each compared to {names[0]}", contents, sections)


def protocol_diff(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """Names of the protocol cards whose values differ, with one value per run; `-` where a card lacks it."""
    cards = [flat(run["scores"].get("protocol", {})) for run in runs]
    names = list(dict.fromkeys(name for card in cards for name in card))
    values = {name: [card.get(name, "-") for card in cards] for name in names}
    return {name: list(row) for name, row in values.items() if len(set(row)) > 1}


def _headline(runs: Sequence[Mapping[str, Any]]) -> Html:
    columns: list[Column] = [("Run", None), ("mIoU", None), ("mIoU %", "n"), ("95 % interval", "n")]
    columns += [("Pixel accuracy %", "n"), ("Mean accuracy %", "n"), ("Images", "n")]
    rows = []
    for run in runs:
        scores = run["scores"]
        interval = scores.get("interval", {}).get("miou")
        shown = [percent(scores.get("miou")), span_of(interval), percent(scores.get("pixel_accuracy"))]
        shown += [percent(scores.get("mean_accuracy")), count(scores.get("images"))]
        bar = element("td", charts.bar(scores.get("miou"), interval), class_="wide")
        name = element("th", run["name"], scope="row")
        rows.append(element("tr", name, bar, *[element("td", cell, class_="n") for cell in shown]))
    return section(
        "headline", "Scores", scrolling(table("Scores of each run", head_row(columns), rows), "Scores of each run")
    )


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], paired: Mapping[str, Any] | None) -> Html:
    paired = paired or {}
    columns: list[Column] = [("Score", None), (str(first["name"]), "n"), (str(other["name"]), "n")]
    columns += [("Difference", "n"), ("95 % interval", "n"), ("p", "n"), ("p (Holm)", "n")]
    miou = [run["scores"].get("miou") for run in (first, other)]
    rows = [_difference("mIoU", miou[0], miou[1], paired.get("miou", {}))]
    before, after = (run["scores"].get("iou", {}) for run in (first, other))
    for name in dict.fromkeys([*before, *after]):
        rows.append(_difference(name, before.get(name), after.get(name), paired.get("iou", {}).get(name, {})))
    hint = "Points of IoU. " + (
        "Intervals and p-values resample the images, the same ones for both runs; Holm's p allows for many classes."
        if paired
        else "No intervals: the runs have no per-image counts of the same images."
    )
    shown = scrolling(table("Differences by class", head_row(columns), rows), f"Differences to {other['name']}")
    title = f"{other['name']} against {first['name']}"
    return section(_key(other), title, element("p", hint, class_="hint"), shown)


def _difference(name: str, before: object, after: object, tested: Mapping[str, Any]) -> Html:
    a, b = number(before), number(after)
    by = number(tested.get("difference"))
    if by is None and a is not None and b is not None:
        by = b - a
    p, holm = number(tested.get("p")), number(tested.get("p_holm"))
    decided = holm if holm is not None else p
    sure = decided is not None and decided < SURE and by is not None
    look = ("n better" if (by or 0) > 0 else "n worse") if sure else "n"
    low, high = ends(tested.get("interval"))
    around = "-" if low is None or high is None else f"{_points(low)} to {_points(high)}"
    cells = [percent(a), percent(b)]
    shown = [element("td", cell, class_="n") for cell in cells] + [element("td", _points(by), class_=look)]
    shown += [element("td", cell, class_="n") for cell in (around, _p(p), _p(holm))]
    return element("tr", element("th", name, scope="row"), *shown)


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _differing(key: str, title: str, names: list[str], values: Mapping[str, Sequence[object]]) -> Html:
    if not values:
        return section(key, title, element("p", "Nothing.", class_="absent"))
    head = head_row([("Key", None), *((name, None) for name in names)])
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *[element("td", value if value is not None else "-") for value in row],
        )
        for name, row in values.items()
    ]
    return section(key, title, scrolling(table(title, head, rows), title))


def _key(run: Mapping[str, Any]) -> str:
    """An id for the run's section: only characters that are safe in a link."""
    return "against-" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in str(run["name"]))
