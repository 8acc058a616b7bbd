"""The sections of numbers: headline, classes, confusion matrix, protocol card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segtrain.report import charts
from segtrain.report.markup import Html, count, element, joined, number, percent, span_of
from segtrain.report.wording import OPTIONS, summary

Column = tuple[str, str | None]
"""A heading and its style class; `n` is for numbers. An empty heading stands over bars."""
READABLE_CELLS = 25
"""Up to this many classes a cell of the matrix has room for its percentage; above, for its color only."""
HEATS = 10
CLASS_COLUMNS: list[Column] = [
    ("Class", None),
    ("IoU", None),
    ("IoU %", "n"),
    ("95 % interval", "n"),
    ("Accuracy %", "n"),
    ("Precision %", "n"),
    ("Boundary IoU %", "n"),
    ("Pixels %", "n"),
]


def section(key: str, title: str, *content: object) -> Html:
    """A landmark with a heading."""
    heading = element("h2", title, id=f"{key}-title")
    return element("section", heading, *content, id=key, aria_labelledby=f"{key}-title")


def absent(key: str, title: str) -> Html:
    """The line in place of a section whose scores were not computed."""
    line = element("p", "Not computed: ", element("code", OPTIONS[key]), " does.", class_="absent")
    return section(key, title, line)


def head_row(columns: Sequence[Column], swatches: Sequence[Html | None] = ()) -> Html:
    """The row of headings, with legend squares before them where given."""
    squares = [*swatches, *[None] * (len(columns) - len(swatches))]
    cells = [
        element("th", square, name or element("span", "Bar", class_="hidden"), scope="col", class_=look)
        for (name, look), square in zip(columns, squares, strict=True)
    ]
    return element("tr", *cells)


def table(caption: str, head: Html, rows: Sequence[Html], **attributes: object) -> Html:
    """A table whose caption only screen readers need: a heading stands above."""
    hidden = element("caption", caption, class_="hidden")
    return element("table", hidden, element("thead", head), element("tbody", *rows), **attributes)


def scrolling(content: Html, label: str) -> Html:
    """A box in which something wide scrolls, by keyboard too, so that the page does not."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def headline(scores: dict[str, Any], classes: list[str]) -> Html:
    """The scores to remember and what goes wrong most."""
    interval = scores.get("interval", {})
    level = f"{percent(interval.get('level', 0.95), 0)} % interval"
    around = [(span_of(interval[key]) if key in interval else None) for key in ("miou", "pixel_accuracy")]
    counted = scores.get("classes_counted")
    tiles = [
        tile("mIoU", percent(scores.get("miou")), around[0] and f"{level}: {around[0]}", look="first"),
        tile("pixel accuracy", percent(scores.get("pixel_accuracy")), around[1] and f"{level}: {around[1]}"),
        tile("mean accuracy", percent(scores.get("mean_accuracy")), counted and f"{counted} of {len(classes)} classes"),
        tile("images", count(scores.get("images")), scores.get("split"), unit=""),
    ]
    note = None
    if not interval:
        note = element(
            "p", "Intervals are not computed: ", element("code", OPTIONS["interval"]), " does.", class_="absent"
        )
    return element(
        "section",
        element("h2", "Scores", class_="hidden", id="headline-title"),
        element("dl", *tiles, class_="tiles"),
        element("p", summary(scores, classes), class_="summary"),
        note,
        id="headline",
        aria_labelledby="headline-title",
    )


def tile(name: str, value: str, under: object, look: str | None = None, unit: str = " %") -> Html:
    """A score to remember: its name, its value, and what it means or an interval under it."""
    shown = element("dd", value, element("small", unit) if value != "-" and unit else None)
    return element(
        "div", element("dt", name), shown, element("dd", under, class_="under") if under else None, class_=look
    )


def class_section(scores: dict[str, Any], classes: list[str], palette: list[list[int]]) -> Html:
    """One bar per class, to be sorted."""
    orders = [("order", "As listed"), ("iou", "IoU"), ("pixels", "Pixels"), ("name", "Name")]
    columns = _columns(scores)
    rows = [_class_row(scores, columns, i, name, palette[i]) for i, name in enumerate(classes)]
    shown = table("IoU of each class", head_row([CLASS_COLUMNS[i] for i in columns]), rows, id="class-table")
    return section("classes", "Classes", sort_tools(orders), scrolling(shown, "Scores of each class"))


def sort_tools(orders: Sequence[tuple[str, str]]) -> Html:
    """Buttons that sort the table of classes: keys, of which `order` is pressed at first, and what they are called."""
    buttons = joined(
        element("button", label, type="button", data_sort=key, aria_pressed="true" if key == "order" else "false")
        for key, label in orders
    )
    said = element("span", "Sort by", id="sort-label")
    return element("div", said, buttons, class_="tools", role="group", aria_labelledby="sort-label")


def _columns(scores: dict[str, Any]) -> list[int]:
    """Numbers of the columns for which there are scores."""
    known = [True, True, True, bool(scores.get("interval", {}).get("iou")), "accuracy" in scores, "precision" in scores]
    known += [bool(scores.get("boundary", {}).get("iou")), "pixels" in scores]
    return [index for index, there in enumerate(known) if there]


def _class_row(scores: dict[str, Any], columns: list[int], index: int, name: str, color: Sequence[int]) -> Html:
    iou = number(scores["iou"].get(name))
    interval = scores.get("interval", {}).get("iou", {}).get(name)
    share = number(scores.get("pixels", {}).get(name))
    cells = [
        element("th", charts.swatch(color=color), name, scope="row"),
        element("td", charts.bar(iou, interval), class_="wide"),
        *[
            element("td", shown, class_="n")
            for shown in (
                percent(iou),
                span_of(interval),
                percent(scores.get("accuracy", {}).get(name)),
                percent(scores.get("precision", {}).get(name)),
                percent(scores.get("boundary", {}).get("iou", {}).get(name)),
                percent(share),
            )
        ],
    ]
    keys = {"data_order": index, "data_name": name, "data_iou": -1 if iou is None else iou, "data_pixels": share or 0}
    return element("tr", *[cells[i] for i in columns], **keys)


def confusion_section(scores: dict[str, Any], classes: list[str]) -> Html:
    """The matrix as a table: rows truth, columns prediction, each row scaled to percent of its class."""
    rows: list[list[int]] = scores["confusion"]
    corner = element("td", "truth ↓  prediction →", class_="corner")
    head = element("tr", corner, *[element("th", element("span", name), scope="col") for name in classes])
    body = [_confusion_row(name, i, cells) for i, (name, cells) in enumerate(zip(classes, rows, strict=True))]
    caption = "Confusion matrix: rows are the truth, columns the prediction"
    dense = "dense" if len(classes) > READABLE_CELLS else None
    shown = table(caption, head, body, id="confusion-table", class_=dense)
    explained = (
        "Of each class's labelled pixels, the percentage predicted as each class. Blue is right, red is wrong, "
        "stronger is more (by the square root, so that rare mistakes show). Point at a cell, or use the arrow keys."
    )
    reading = element("p", "\N{NO-BREAK SPACE}", id="confusion-reading", class_="reading", aria_live="polite")
    return section(
        "confusion", "Confusion", element("p", explained, class_="hint"), reading, scrolling(shown, "Confusion matrix")
    )


def _confusion_row(name: str, index: int, cells: list[int]) -> Html:
    total = sum(cells)
    shown = [_confusion_cell(n, total, right=column == index) for column, n in enumerate(cells)]
    return element("tr", element("th", name, scope="row"), *shown, data_total=total)


def _confusion_cell(pixels: int, total: int, *, right: bool) -> Html:
    if not pixels:
        return element("td")
    share = pixels / total
    look = f"{'right' if right else 'wrong'} h{max(1, math.ceil(HEATS * math.sqrt(share)))}"
    # A share too small to print still has its color and its count.
    return element(
        "td",
        f"{100 * share:.0f}" if share >= 0.005 else element("span", "<1", class_="tiny"),
        class_=look,
        data_n=pixels,
    )


def protocol_section(scores: dict[str, Any]) -> Html:
    """How the numbers came about, to be copied into a paper or an issue."""
    card = scores.get("protocol")
    if not card:
        return absent("protocol", "Protocol")
    rows = joined(
        element("tr", element("th", name, scope="row"), element("td", value)) for name, value in flat(card).items()
    )
    button = element("button", "Copy", type="button", id="copy-protocol")
    said = element("span", id="copy-said", role="status")
    caption = element("caption", "Protocol card", class_="hidden")
    shown = element("table", caption, element("tbody", rows), id="protocol-table", class_="card-table")
    hint = element("p", "Two numbers can be compared where these agree.", class_="hint")
    return section(
        "protocol", "Protocol", hint, element("div", button, said, class_="tools"), scrolling(shown, "Protocol card")
    )


def flat(card: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names joined by dots, values as text."""
    found: dict[str, str] = {}
    for name, value in card.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _as_text(value)
    return found


def _as_text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_as_text(item) for item in value)
    return str(value)
