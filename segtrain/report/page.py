"""The page around the sections: one HTML file with its style and script inside, and a policy that forbids the rest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from segtrain.gallery import KIND_COLORS, WorstImage
from segtrain.object_gallery import OUTCOME_COLORS
from segtrain.report.diagnosis import anatomy_section, boundary_section, calibration_section
from segtrain.report.markup import Html, element, joined
from segtrain.report.tables import class_section, confusion_section, headline, protocol_section
from segtrain.report.worst import dialog, worst_section


def evaluation_page(
    title: str,
    scores: dict[str, Any],
    classes: list[str],
    palette: list[list[int]],
    worst: Sequence[WorstImage] = (),
) -> str:
    """One evaluation as an HTML file that needs nothing else.

    Args:
        title: what was evaluated, e.g. checkpoint and dataset.
        scores: as in `metrics.json`, NaN as NaN or None. What is missing of `interval`, `boundary`, `calibration`,
            `anatomy` and `protocol` is left out with a line that says which option computes it.
        classes: names in index order.
        palette: one RGB triple per class.
        worst: what `Gallery.worst` gives.
    """
    sections = [
        headline(scores, classes),
        class_section(scores, classes, palette),
        worst_section(worst, classes, palette),
        anatomy_section(scores, classes),
        confusion_section(scores, classes),
        boundary_section(scores),
        calibration_section(scores),
        protocol_section(scores),
    ]
    names = ("Classes", "Worst images", "What goes wrong", "Confusion", "Edges", "Confidence", "Protocol")
    keys = ("classes", "worst", "anatomy", "confusion", "boundary", "calibration", "protocol")
    under = " · ".join(str(scores[key]) for key in ("checkpoint", "split") if scores.get(key))
    return document(title, under, list(zip(keys, names, strict=True)), [*sections, *([dialog()] if worst else [])])


def document(title: str, under: str, contents: Sequence[tuple[str, str]], sections: Sequence[Html]) -> str:
    """The whole file. Style and script are named in the policy by their hashes, so that no other can run."""
    style, script = _style(), _resource("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # Without it a browser asks the server, if there is one, for an icon.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(style)),
    )
    links = joined(element("li", element("a", name, href=f"#{key}")) for key, name in contents)
    body = element(
        "body",
        element("a", "Skip to the scores", href="#main", class_="skip"),
        element("header", element("h1", title), element("p", under, class_="hint") if under else None),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", *sections, id="main"),
        element("script", Html(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


@cache
def _style() -> str:
    colors = "".join(
        f"--{kind.replace('_', '-')}:#{red:02x}{green:02x}{blue:02x};"
        for kind, (red, green, blue) in (KIND_COLORS | OUTCOME_COLORS).items()
    )
    return f":root{{{colors}}}\n" + _resource("page.css")


@cache
def _resource(name: str) -> str:
    # A carriage return would be read as a newline by the browser, and then the hash would not fit.
    return files("segtrain.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
