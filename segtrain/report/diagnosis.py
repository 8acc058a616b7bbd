"""The sections that say why: error anatomy, boundaries, calibration."""

from __future__ import annotations

import math
from typing import Any

from segtrain.metrics.anatomy import KINDS
from segtrain.report import charts
from segtrain.report.markup import Html, count, element, number, percent
from segtrain.report.tables import Column, absent, head_row, scrolling, section, table
from segtrain.report.wording import KIND_MEANINGS, KIND_NAMES

PERCENT_TICKS = [(share, f"{100 * share:.0f}") for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
SIZES = {"small": "small (under 32² px)", "medium": "medium (under 96² px)", "large": "large"}


def kind_look(kind: str) -> str:
    """The style class that gives a kind its color."""
    return f"kind-{kind.replace('_', '-')}"


def anatomy_section(scores: dict[str, Any], classes: list[str]) -> Html:
    """Every wrong pixel by kind: in all, by class, by object size, and what mending a kind would bring."""
    found = scores.get("anatomy")
    if not found:
        return absent("anatomy", "What goes wrong")
    radius = found.get("radius", {})
    hint = (
        f"Each wrong pixel has one kind. A slip is off by at most {percent(radius.get('share_of_diagonal'), 2)} % of "
        f"the diagonal, or {count(radius.get('least_px'))} px. The gain is what mIoU would rise by without that kind."
    )
    return section(
        "anatomy",
        "What goes wrong",
        element("p", hint, class_="hint"),
        scrolling(_kinds_table(found), "Error kinds"),
        element("h3", "By class"),
        element(
            "p", "Wrong pixels as a share of the class's labelled pixels, for classes that have any.", class_="hint"
        ),
        scrolling(_by_class_table(scores, classes), "Error kinds by class"),
        element("h3", "By size of the object"),
        scrolling(_by_size_table(found.get("by_size", {})), "Error kinds by size"),
        *_pairs(found.get("pairs", [])),
    )


def _kinds_table(found: dict[str, Any]) -> Html:
    head = head_row(_KIND_COLUMNS)
    rows = []
    for kind in KINDS:
        name = element("th", charts.swatch(kind_look(kind)), KIND_NAMES[kind], scope="row")
        share, gain = (number(found.get(key, {}).get(kind)) for key in ("share_of_errors", "gain"))
        cells = [
            element("td", charts.bar(share, look=kind_look(kind)), class_="wide"),
            element("td", percent(share), class_="n"),
            element("td", count(found.get("pixels", {}).get(kind)), class_="n"),
            element("td", "-" if gain is None else f"{100 * gain:+.1f}", class_="n"),
            element("td", KIND_MEANINGS[kind], class_="words"),
        ]
        rows.append(element("tr", name, *cells))
    return table("Error kinds", head, rows)


_KIND_COLUMNS: list[Column] = [
    ("Kind", None),
    ("Share of errors", None),
    ("%", "n"),
    ("Pixels", "n"),
    ("mIoU gain", "n"),
    ("Meaning", "words"),
]


def _by_class_table(scores: dict[str, Any], classes: list[str]) -> Html:
    by_class, rows = scores["anatomy"].get("by_class", {}), []
    for index, name in enumerate(classes):
        kinds, total = by_class.get(name, {}), sum(scores["confusion"][index])
        if not total:
            continue
        bar = element("td", charts.stacked(_pieces(kinds, total, name)), class_="wide")
        cells = [bar, element("td", percent(sum(kinds.values()) / total), class_="n")]
        rows.append(element("tr", element("th", name, scope="row"), *cells, *_kind_cells(kinds, total)))
    return table("Error kinds by class", _stacked_head("Class", "Wrong %"), rows)


def _by_size_table(by_size: dict[str, dict[str, int]]) -> Html:
    rows = []
    for size, kinds in by_size.items():
        total = sum(kinds.values())
        bar = charts.stacked(_pieces(kinds, total, size)) if total else None
        cells = [element("td", bar, class_="wide"), element("td", count(total), class_="n")]
        name = element("th", SIZES.get(size, size), scope="row")
        rows.append(element("tr", name, *cells, *_kind_cells(kinds, total)))
    return table("Error kinds by object size", _stacked_head("Object", "Wrong pixels"), rows)


def _stacked_head(first: str, total: str) -> Html:
    columns: list[Column] = [(first, None), ("Kinds", None), (total, "n")]
    columns += [(f"{KIND_NAMES[kind]} %", "n") for kind in KINDS]
    return head_row(columns, [None, None, None, *(charts.swatch(kind_look(kind)) for kind in KINDS)])


def _pieces(kinds: dict[str, int], total: int, of: str) -> list[tuple[str, float, str]]:
    return [
        (kind_look(kind), kinds.get(kind, 0) / total, f"{of}: {KIND_NAMES[kind]}, {count(kinds.get(kind, 0))} pixels")
        for kind in KINDS
    ]


def _kind_cells(kinds: dict[str, int], total: int) -> list[Html]:
    return [element("td", percent(kinds.get(kind, 0) / total) if total else "-", class_="n") for kind in KINDS]


def _pairs(pairs: list[dict[str, Any]]) -> list[Html | None]:
    if not pairs:
        return []
    top = pairs[:10]
    most = max(pair["pixels"] for pair in top)
    rows = []
    for pair in top:
        name = element("th", f"{pair['target']} → {pair['prediction']}", scope="row")
        bar = charts.bar(pair["pixels"] / most, look=kind_look("class_confusion"))
        rows.append(
            element("tr", name, element("td", bar, class_="wide"), element("td", count(pair["pixels"]), class_="n"))
        )
    head = head_row([("Truth → prediction", None), ("", None), ("Pixels", "n")])
    shown = table("Classes taken for one another", head, rows)
    return [element("h3", "Taken for one another"), scrolling(shown, "Classes taken for one another")]


def boundary_section(scores: dict[str, Any]) -> Html:
    """How good the edges are, and how the scores fall the nearer one looks at them."""
    found = scores.get("boundary")
    if not found:
        return absent("boundary", "Edges")
    facts = [
        (
            "boundary IoU",
            percent(found.get("mean_iou")),
            f"band {percent(found.get('dilation_ratio'))} % of the diagonal",
        ),
        ("lower of both IoUs", percent(found.get("mean_min_iou")), "mask IoU or boundary IoU, class by class"),
        (
            "boundary F",
            percent(found.get("mean_f")),
            f"tolerance {percent(found.get('f_tolerance'), 2)} % of the diagonal",
        ),
    ]
    return section("boundary", "Edges", facts_list(facts), *_trimap(found.get("trimap")))


def facts_list(facts: list[tuple[str, str, str]]) -> Html:
    """Small tiles: name, value in percent, what it means."""
    tiles = [
        element("div", element("dt", name), element("dd", value), element("dd", meaning, class_="under"))
        for name, value, meaning in facts
    ]
    return element("dl", *tiles, class_="tiles small")


def _trimap(found: dict[str, Any] | None) -> list[Html | None]:
    if not found or not found.get("radius"):
        return []
    radii = found["radius"]
    curves = [("mIoU", "a", found.get("miou", [])), ("pixel accuracy", "b", found.get("pixel_accuracy", []))]
    lines = [
        charts.Line(
            name, [(math.log2(r), v) for r, v in zip(radii, values, strict=True) if number(v) is not None], look
        )
        for name, look, values in curves
        if values
    ]
    # One radius alone would leave the axis without a length.
    x = charts.Axis(
        "px from an edge (log scale)",
        math.log2(min(radii)),
        math.log2(max(radii)) or 1,
        [(math.log2(r), str(r)) for r in radii],
    )
    y = charts.Axis("%", 0, 1, PERCENT_TICKS)
    described = "Scores of the pixels near an edge: " + "; ".join(
        f"within {radius} px mIoU {percent(miou)} %" for radius, miou in zip(radii, found.get("miou", []), strict=False)
    )
    rows = [
        element("tr", element("th", f"{radius} px", scope="row"), *[element("td", cell, class_="n") for cell in cells])
        for radius, *cells in zip(
            radii,
            map(percent, curves[0][2]),
            map(percent, curves[1][2]),
            map(count, found.get("pixels", [])),
            strict=False,
        )
    ]
    head = head_row(_TRIMAP_COLUMNS)
    chart = charts.line_chart(lines, x, y, described)
    return [
        element("h3", "Scores near edges"),
        element("div", chart, numbers(table("Scores near edges", head, rows)), class_="beside"),
    ]


_TRIMAP_COLUMNS: list[Column] = [("Within", None), ("mIoU %", "n"), ("Pixel accuracy %", "n"), ("Pixels", "n")]


def numbers(rows: Html) -> Html:
    """The table behind a curve, to be folded away."""
    return element("details", element("summary", "The numbers"), scrolling(rows, "The numbers of the curve"), open=True)


def calibration_section(scores: dict[str, Any]) -> Html:
    """Whether a confidence of 90 % means right 9 times out of 10."""
    found = scores.get("calibration")
    if not found:
        return absent("calibration", "Confidence")
    temperature = number(found.get("temperature"))
    scaled = "-" if temperature is None else f"{temperature:.2f}"
    facts = [
        ("calibration error", percent(found.get("ece")), "mean gap between confidence and accuracy"),
        ("temperature", scaled, _temperature_words(temperature)),
        ("error at that temperature", percent(found.get("ece_at_temperature")), "logits divided by the temperature"),
    ]
    bins = found.get("bins", [])
    lines = [charts.Line("as predicted", _bin_points(bins), "a")]
    if found.get("bins_at_temperature"):
        lines.append(charts.Line(f"at temperature {scaled}", _bin_points(found["bins_at_temperature"]), "b"))
    x, y = charts.Axis("confidence %", 0, 1, PERCENT_TICKS), charts.Axis("accuracy %", 0, 1, PERCENT_TICKS)
    described = "Accuracy by confidence: " + "; ".join(
        f"confidence {percent(one.get('confidence'), 0)} %, accuracy {percent(one.get('accuracy'), 0)} %"
        for one in bins
        if one.get("pixels")
    )
    chart = charts.line_chart(lines, x, y, described, diagonal=True)
    hint = element("p", "On the dashed line, confidence is honest; below it the network is too sure.", class_="hint")
    return section(
        "calibration",
        "Confidence",
        facts_list(facts),
        hint,
        element("div", chart, numbers(_bins_table(bins)), class_="beside"),
    )


def _temperature_words(temperature: float | None) -> str:
    if temperature is None:
        return ""
    if abs(temperature - 1) < 0.02:
        return "as confident as it should be"
    return "above 1: too confident" if temperature > 1 else "below 1: not confident enough"


def _bin_points(bins: list[dict[str, Any]]) -> list[tuple[float, float]]:
    pairs = [(number(one.get("confidence")), number(one.get("accuracy"))) for one in bins if one.get("pixels")]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _bins_table(bins: list[dict[str, Any]]) -> Html:
    rows = []
    for one in bins:
        name = element("th", f"{percent(one.get('low'), 0)} to {percent(one.get('high'), 0)}", scope="row")
        shown = (percent(one.get("confidence")), percent(one.get("accuracy")), count(one.get("pixels")))
        rows.append(element("tr", name, *[element("td", cell, class_="n") for cell in shown]))
    head = head_row([("Confidence bin %", None), ("Mean confidence %", "n"), ("Accuracy %", "n"), ("Pixels", "n")])
    return table("Accuracy by confidence", head, rows)
