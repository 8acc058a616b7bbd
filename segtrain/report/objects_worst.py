"""The worst images of an evaluation of single objects: what was found, missed and invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segtrain.errors import listed
from segtrain.object_gallery import LETTERS, OUTCOMES, Tag, WorstObjects
from segtrain.report import charts
from segtrain.report.markup import Html, element, joined, percent
from segtrain.report.tables import section
from segtrain.report.wording import OUTCOME_MEANINGS
from segtrain.report.worst import SHARP_BELOW, cards_section, class_tools, data_url

HINT = (
    "The lowest quality first: the summed IoU of the objects found over their number and half of the missed and the "
    "invented ones, for detections of score 0.5 and above. Click a row or press Enter to enlarge."
)


def worst_section(worst: Sequence[WorstObjects], classes: list[str], palette: list[list[int]]) -> Html:
    """Input, truth, prediction and outcomes of each image, from the worst on."""
    if not worst:
        line = element("p", "No image has an object, true or found.", class_="absent")
        return section("worst", "Worst images", line)
    held = sorted({index for image in worst for index in image.classes})
    cards = [_card(image, place, classes, palette) for place, image in enumerate(worst)]
    return cards_section(cards, HINT, class_tools(held, classes, palette), _outcome_tools())


def _outcome_tools() -> Html:
    chips = joined(
        element(
            "button",
            charts.swatch(f"kind-{kind}"),
            kind,
            type="button",
            class_="chip",
            data_kind=kind,
            data_many=f"{kind} objects",
            title=OUTCOME_MEANINGS[kind],
            aria_pressed="false",
        )
        for kind in OUTCOMES
        if kind != "found"
    )
    right = element("span", charts.swatch("kind-found"), "found (white: the true edge)", class_="named")
    crowd = element("span", charts.swatch("kind-crowd"), "crowd, not judged", class_="named")
    label = element("span", "Most of these first", id="kind-label")
    chips = element("span", chips, class_="chips")
    return element("div", label, chips, right, crowd, class_="tools", role="group", aria_labelledby="kind-label")


def _card(image: WorstObjects, place: int, classes: list[str], palette: list[list[int]]) -> Html:
    held = [
        element("span", charts.swatch(color=palette[index]), classes[index], class_="named") for index in image.classes
    ]
    total = sum(image.counts.values()) or 1
    pieces = [(f"kind-{kind}", image.counts[kind] / total, f"{image.counts[kind]} {kind}") for kind in OUTCOMES]
    enlarge = element("span", "Enlarge ", class_="hidden")
    return element(
        "li",
        element("h3", image.name),
        element("p", _facts(image, classes), class_="facts"),
        element("p", *held, class_="hint held"),
        charts.stacked(pieces),
        element("button", enlarge, _panels(image, classes), type="button", class_="open"),
        class_="image",
        data_place=place,
        data_classes=" ".join(map(str, image.classes)),
        **{f"data_{kind}": image.counts[kind] for kind in OUTCOMES},
    )


def _facts(image: WorstObjects, classes: list[str]) -> str:
    return f"Quality {percent(image.quality)} %: {_told(image, classes)}; {image.width} by {image.height} px"


def _told(image: WorstObjects, classes: list[str]) -> str:
    """`3 found, 2 missed (2 cat), 1 invented (dog)`; without names where there is one class of objects."""
    wrong = {"missed": image.missed, "invented": image.invented}
    parts = []
    for kind in OUTCOMES:
        known = Counter(classes[index] for index in wrong.get(kind, ()))
        several = len(classes) > 2
        names = listed((name if n == 1 else f"{n} {name}" for name, n in known.most_common()), limit=4)
        parts.append(f"{image.counts[kind]} {kind}" + (f" ({names})" if names and several else ""))
    return ", ".join(parts)


def _panels(image: WorstObjects, classes: list[str]) -> Html:
    held = ", ".join(classes[index] for index in image.classes)
    counts = [
        element("span", charts.swatch(f"kind-{kind}"), f"{image.counts[kind]} {kind}", class_="named")
        for kind in OUTCOMES
        if image.counts[kind]
    ]
    layers: list[tuple[str, Sequence[object], bytes, list[Tag], str]] = [
        ("truth", ["Truth"], image.truth, image.truth_tags, f"true objects of {image.name}; true or found: {held}"),
        ("prediction", ["Prediction"], image.prediction, image.prediction_tags, f"objects found in {image.name}"),
        ("kinds", counts, image.outcomes, [], f"outcomes in {image.name}: {_told(image, classes)}"),
    ]
    # Flat pixels stay sharp when a small image is enlarged.
    sharp = " sharp" if image.width < SHARP_BELOW else ""
    first = element("img", src=data_url(image.input, "jpeg"), alt=f"input {image.name}", class_="under")
    panels = [element("span", element("span", first, class_=f"stack{sharp}"), element("span", "Input"), class_="panel")]
    for look, caption, png, tags, alt in layers:
        over = element("img", src=data_url(png, "png"), alt=alt, class_="over")
        stack = element("span", over, _tags(tags, image.height / image.width), class_=f"stack {look}{sharp}")
        panels.append(element("span", stack, element("span", *caption), class_="panel"))
    return element("span", *panels, class_="panels")


def _tags(tags: Sequence[Tag], aspect: float) -> Html | None:
    """Names over a picture of that height over width: as text, sharp at any size. The alternative text is the img's."""
    if not tags:
        return None
    high = 100 * aspect
    words = [element("text", tag.words, x=f"{100 * tag.x:.1f}", y=f"{high * tag.y:.1f}", dy="0.35em") for tag in tags]
    size = f"{100 * LETTERS:.2f}"
    return element("svg", *words, viewBox=f"0 0 100 {high:.2f}", font_size=size, class_="tags", aria_hidden="true")
