"""One evaluation of single objects as a page: the same look as that of classes per pixel, with COCO's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segtrain.object_gallery import WorstObjects
from segtrain.report import charts
from segtrain.report.markup import Html, count, element, number, percent
from segtrain.report.objects_curves import Curves, curve_section, mean_precision, overlap_section
from segtrain.report.objects_worst import worst_section
from segtrain.report.page import document
from segtrain.report.tables import Column, head_row, protocol_section, scrolling, section, sort_tools, table, tile
from segtrain.report.wording import object_summary
from segtrain.report.worst import dialog

BySize = Mapping[str, Mapping[str, float]]
UNKNOWN_LAST = 2
"""What a class without a score is sorted by: no AP is higher than 1."""
ORDERS = (("order", "As listed"), ("ap", "Mask AP"), ("objects", "Objects"), ("name", "Name"))


def instance_page(
    title: str,
    content: Mapping[str, Any],
    classes: list[str],
    palette: list[list[int]],
    *,
    curves: Curves,
    by_size: BySize,
    by_threshold: Mapping[str, Sequence[float]],
    worst: Sequence[WorstObjects],
) -> str:
    """One evaluation of single objects as an HTML file that needs nothing else.

    Args:
        title: what was evaluated, e.g. checkpoint and dataset.
        content: as in `metrics.json`, NaN as NaN or None: the scores of `AveragePrecision.compute`, `images`, and
            `protocol`, without which a line says what computes it.
        classes: names in index order, the background first.
        palette: one RGB triple per class.
        curves: what `AveragePrecision.curves` gives.
        by_size: what `AveragePrecision.by_size` gives for masks.
        by_threshold: what `AveragePrecision.by_threshold` gives, by kind: `mask`, and `box` and `boundary` if wanted.
        worst: what `ObjectGallery.worst` gives.
    """
    scores = dict(content)
    sections = [
        headline(scores, classes),
        class_section(scores, classes, palette, curves, by_size),
        worst_section(worst, classes, palette),
        curve_section(curves, by_size),
        overlap_section(scores, by_threshold),
        protocol_section(scores),
    ]
    names = ("Classes", "Worst images", "Precision and recall", "Overlap and size", "Protocol")
    keys = ("classes", "worst", "curves", "overlap", "protocol")
    under = " · ".join(str(scores[key]) for key in ("checkpoint", "split") if scores.get(key))
    return document(title, under, list(zip(keys, names, strict=True)), [*sections, *([dialog()] if worst else [])])


def headline(scores: dict[str, Any], classes: list[str]) -> Html:
    """The scores to remember, and where the network is weakest."""
    things = len(classes) - 1
    counted = sum(number(one) is not None for one in scores["mask_ap_per_class"].values())
    boundary = [("boundary AP", "boundary_ap", "the lesser of mask and edge IoU")] if "boundary_ap" in scores else []
    named = [
        ("mask AP", "mask_ap", f"IoU 50 to 95 %, {counted} of {things} {'class' if things == 1 else 'classes'}"),
        ("box AP", "box_ap", "the same of boxes"),
        ("mask AP50", "mask_ap50", "IoU of 50 % is enough"),
        ("mask AP75", "mask_ap75", "IoU of 75 % is enough"),
        *boundary,
    ]
    tiles = [
        tile(name, percent(scores.get(key)), meaning, look=None if place else "first")
        for place, (name, key, meaning) in enumerate(named)
    ]
    tiles.append(tile("images", count(scores.get("images")), scores.get("split"), unit=""))
    return element(
        "section",
        element("h2", "Scores", class_="hidden", id="headline-title"),
        element("dl", *tiles, class_="tiles"),
        element("p", object_summary(scores), class_="summary"),
        id="headline",
        aria_labelledby="headline-title",
    )


def class_section(
    scores: dict[str, Any], classes: list[str], palette: list[list[int]], curves: Curves, by_size: BySize
) -> Html:
    """One bar per class, to be sorted."""
    rows = [
        _class_row(scores, index, name, palette[index], curves.get(name), by_size.get(name, {}))
        for index, name in enumerate(classes)
        if index
    ]
    columns = [*_COLUMNS[:5], *([_BOUNDARY] if "boundary_ap" in scores else []), *_COLUMNS[5:]]
    shown = table("Average precision of each class", head_row(columns), rows, id="class-table")
    hint = (
        "Small, medium and large is the mask AP of objects under 32² px, under 96² px and above; - where there are "
        "none. Crowds are not counted."
    )
    under = element("p", hint, class_="hint")
    return section("classes", "Classes", under, sort_tools(ORDERS), scrolling(shown, "Scores of each class"))


_BOUNDARY: Column = ("Boundary AP %", "n")
_COLUMNS: list[Column] = [
    ("Class", None),
    ("Mask AP", None),
    ("Mask AP %", "n"),
    ("AP50 %", "n"),
    ("Box AP %", "n"),
    ("Small %", "n"),
    ("Medium %", "n"),
    ("Large %", "n"),
    ("Objects", "n"),
]


def _class_row(
    scores: dict[str, Any],
    index: int,
    name: str,
    color: Sequence[int],
    curve: Mapping[str, list[float]] | None,
    sizes: Mapping[str, float],
) -> Html:
    ap, objects = number(scores["mask_ap_per_class"].get(name)), scores["instances_per_class"].get(name, 0)
    loose = None if curve is None else mean_precision(curve["precision"])
    numbers = [percent(ap), percent(loose), percent(scores["box_ap_per_class"].get(name))]
    if "boundary_ap" in scores:
        numbers.append(percent(scores["boundary_ap_per_class"].get(name)))
    numbers += [percent(sizes.get(size)) for size in ("small", "medium", "large")]
    cells = [
        element("th", charts.swatch(color=color), name, scope="row"),
        element("td", charts.bar(ap), class_="wide"),
        *[element("td", shown, class_="n") for shown in (*numbers, count(objects))],
    ]
    known = UNKNOWN_LAST if ap is None else ap
    return element("tr", *cells, data_order=index, data_name=name, data_ap=known, data_objects=objects)
