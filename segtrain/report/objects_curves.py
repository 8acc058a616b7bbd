"""The sections of curves of an evaluation of single objects: precision over recall, AP over overlap and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segtrain.report import charts
from segtrain.report.diagnosis import PERCENT_TICKS, SIZES, facts_list, numbers
from segtrain.report.markup import Html, element, number, percent
from segtrain.report.tables import Column, head_row, scrolling, section, table

Curves = Mapping[str, Mapping[str, list[float]]]
"""By class `recall`, `precision` at IoU 0.5 and `precision75`, as `AveragePrecision.curves` gives them."""
SHOWN = 12
"""Charts of this many classes, the weakest, are open; the others are folded away."""
KINDS = {"mask": "a", "box": "b", "boundary": "c"}
"""What overlaps are measured of, and the look of its line."""


def mean_precision(precision: Sequence[float]) -> float:
    """The area under a curve over even recalls: the AP at its IoU."""
    return math.fsum(precision) / len(precision)


def curve_section(curves: Curves, by_size: Mapping[str, Mapping[str, float]]) -> Html:
    """Precision over recall: of all classes together, then of each, the weakest first."""
    if not curves:
        return section("curves", "Precision and recall", element("p", "No class has an object.", class_="absent"))
    aps = {name: number(by_size.get(name, {}).get("all")) for name in curves}
    never = [name for name, curve in curves.items() if not any(curve["precision"])]
    order = sorted(curves.keys() - never, key=lambda name: (aps[name] or 0, name))
    shown = [_multiple(name, curves[name], aps[name]) for name in order]
    hint = (
        "Detections are taken in from the surest on: recall is the share of objects found so far, precision the share "
        "of right ones among the detections. The area under a curve is the AP at its IoU."
    )
    parts: list[Html | None] = [element("p", hint, class_="hint"), _overall(curves)]
    if never:
        parts.append(element("p", f"Never found at an IoU of 50 %: {', '.join(never)}."))
    if len(curves) > 1 and order:
        parts += [element("h3", "By class"), _count_line(len(order)), element("ul", *shown[:SHOWN], class_="multiples")]
    if shown[SHOWN:]:
        folded = element("summary", f"The other {len(shown) - SHOWN} classes")
        parts.append(element("details", folded, element("ul", *shown[SHOWN:], class_="multiples")))
    return section("curves", "Precision and recall", *parts)


def _count_line(classes: int) -> Html:
    weakest = f"The {SHOWN} weakest" if classes > SHOWN else "The weakest"
    return element("p", f"{weakest} first. Recall runs to the right, precision upwards; all in %.", class_="hint")


def _lines(curve: Mapping[str, Sequence[float]]) -> list[charts.Line]:
    pairs = (("IoU 50 %", "precision", "a"), ("IoU 75 %", "precision75", "b"))
    return [
        charts.Line(name, list(zip(curve["recall"], curve[key], strict=True)), look, marks=False)
        for name, key, look in pairs
    ]


def _overall(curves: Curves) -> Html:
    """The mean curve of the classes, and its numbers at every tenth."""
    recall = next(iter(curves.values()))["recall"]
    mean = {
        key: [math.fsum(values) / len(values) for values in zip(*(one[key] for one in curves.values()), strict=True)]
        for key in ("precision", "precision75")
    }
    lines = _lines({"recall": recall, **mean})
    name = next(iter(curves)) if len(curves) == 1 else "the mean of the classes"
    described = f"Precision over recall, {name}: " + "; ".join(
        f"{line.name}, area {percent(mean_precision(mean[key]))} %" for line, key in zip(lines, mean, strict=True)
    )
    chart = charts.line_chart(
        lines, charts.Axis("recall %", 0, 1, PERCENT_TICKS), charts.Axis("precision %", 0, 1, PERCENT_TICKS), described
    )
    rows = [
        element(
            "tr",
            element("th", percent(recall[place], 0), scope="row"),
            *[element("td", percent(mean[key][place]), class_="n") for key in mean],
        )
        for place in range(0, len(recall), max(1, len(recall) // 10))
    ]
    head = head_row([("Recall %", None), ("Precision % at IoU 50 %", "n"), ("At IoU 75 %", "n")])
    shown = numbers(table("Precision by recall", head, rows))
    return element("div", chart, shown, class_="beside")


def _multiple(name: str, curve: Mapping[str, list[float]], ap: float | None) -> Html:
    at50, at75 = (percent(mean_precision(curve[key])) for key in ("precision", "precision75"))
    told = f"AP {percent(ap)}, AP50 {at50}, AP75 {at75}"
    chart = charts.small_chart(_lines(curve), f"Precision over recall of {name}: {told}")
    return element("li", element("h4", name), element("p", told), chart)


def overlap_section(scores: dict[str, Any], by_threshold: Mapping[str, Sequence[float]]) -> Html:
    """How AP falls the closer a mask must fit, and what it is for small and large objects."""
    kinds = [kind for kind in KINDS if by_threshold.get(kind)]
    facts = [
        (f"recall of {most}", percent(scores[f"mask_ar{most}"]), f"at most {most} per class and image: AR{most}")
        for most in sorted(int(key[7:]) for key in scores if key.startswith("mask_ar") and key[7:].isdigit())
    ]
    return section(
        "overlap",
        "Overlap and size",
        facts_list(facts),
        *([element("h3", "By IoU"), _by_threshold(kinds, by_threshold)] if kinds else []),
        element("h3", "By size of the object"),
        scrolling(_by_size(scores), "Scores by object size"),
    )


def _by_threshold(kinds: list[str], by_threshold: Mapping[str, Sequence[float]]) -> Html:
    ious = [(50 + 5 * place) / 100 for place in range(len(by_threshold[kinds[0]]))]
    lines = []
    for kind in kinds:
        points = [
            (iou, ap) for iou, value in zip(ious, by_threshold[kind], strict=True) if (ap := number(value)) is not None
        ]
        lines.append(charts.Line(f"{kind} AP", points, KINDS[kind]))
    x = charts.Axis("IoU that is enough, %", 0.5, 0.95, [(iou, f"{100 * iou:.0f}") for iou in ious])
    described = "AP by the IoU that is enough: " + "; ".join(
        f"{line.name} " + ", ".join(f"{100 * iou:.0f} %: {percent(ap)}" for iou, ap in line.points) for line in lines
    )
    chart = charts.line_chart(lines, x, charts.Axis("AP %", 0, 1, PERCENT_TICKS), described)
    rows = [
        element(
            "tr",
            element("th", f"{100 * iou:.0f}", scope="row"),
            *[element("td", percent(by_threshold[kind][place]), class_="n") for kind in kinds],
        )
        for place, iou in enumerate(ious)
    ]
    head = head_row([("IoU %", None), *((f"{kind.capitalize()} AP %", "n") for kind in kinds)])
    return element("div", chart, numbers(table("AP by IoU", head, rows)), class_="beside")


def _by_size(scores: dict[str, Any]) -> Html:
    kinds = [kind for kind in KINDS if f"{kind}_ap" in scores]
    columns: list[Column] = [("Object", None), ("Mask AP", None)]
    columns += [(f"{kind.capitalize()} AP %", "n") for kind in kinds] + [("Mask recall (AR) %", "n")]
    most = max((int(key[7:]) for key in scores if key.startswith("mask_ar") and key[7:].isdigit()), default=100)
    rows = []
    for size, words in (("", "all"), *SIZES.items()):
        end = f"_{size}" if size else ""
        ap = scores.get(f"mask_ap{end}")
        recall = scores.get(f"mask_ar{end or most}")
        cells = [percent(scores.get(f"{kind}_ap{end}")) for kind in kinds] + [percent(recall)]
        bar = element("td", charts.bar(ap), class_="wide")
        rows.append(
            element("tr", element("th", words, scope="row"), bar, *[element("td", cell, class_="n") for cell in cells])
        )
    return table("Scores by object size", head_row(columns), rows)
