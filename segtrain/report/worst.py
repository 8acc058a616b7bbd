"""The worst images with their filters, and the dialog in which one is shown large."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from segtrain.gallery import WorstImage
from segtrain.metrics.anatomy import KINDS
from segtrain.pictures import VOID
from segtrain.report import charts
from segtrain.report.diagnosis import kind_look
from segtrain.report.markup import Html, element, joined, percent
from segtrain.report.tables import absent, section
from segtrain.report.wording import KIND_MEANINGS, KIND_NAMES, KIND_PLURALS

SHARP_BELOW = 240
"""Images of fewer columns are enlarged without smoothing."""
MOST_BUTTONS = 24
"""Of more classes than this the list alone is left to choose from: so many buttons would hide the images."""


def worst_section(worst: Sequence[WorstImage], classes: list[str], palette: list[list[int]]) -> Html:
    """Input, truth, prediction and error kinds of each image, from the worst on."""
    if not worst:
        return absent("worst", "Worst images")
    held = sorted({index for image in worst for index in image.classes})
    hint = "The lowest mIoU first, over the classes an image has or was given. Click a row or press Enter to enlarge."
    cards = [_card(image, place, classes, palette) for place, image in enumerate(worst)]
    return cards_section(cards, hint, class_tools(held, classes, palette), _kind_tools())


def cards_section(cards: Sequence[Html], hint: str, *tools: Html) -> Html:
    """The worst images in a list: `hint` says in which order, `tools` choose among them."""
    return section(
        "worst",
        "Worst images",
        element("p", hint, class_="hint"),
        *tools,
        opacity("opacity"),
        element("p", f"{len(cards)} images", id="worst-said", role="status"),
        element("ol", *cards, id="worst-list"),
    )


def dialog() -> Html:
    """The empty dialog that the script fills."""
    close = element("button", "Close", type="button", id="large-close")
    turn = [
        element("button", "← Previous", type="button", id="large-previous"),
        element("button", "Next →", type="button", id="large-next"),
    ]
    bar = element("div", *turn, opacity("large-opacity"), close, class_="tools")
    title = element("h2", id="large-title")
    held = element("p", id="large-held", class_="hint held")
    content = [bar, title, element("p", id="large-facts"), held, element("div", id="large-panels", class_="panels")]
    return element("dialog", *content, id="large", aria_labelledby="large-title")


def class_tools(held: list[int], classes: list[str], palette: list[list[int]]) -> Html:
    """Shows the images of one class: a list to choose from, and buttons for the indices `held` if they are few."""
    options = [element("option", "all", value="")] + [element("option", classes[i], value=i) for i in held]
    chosen = element("label", "Class ", element("select", *options, id="class-filter"))
    chips = joined(
        element(
            "button",
            charts.swatch(color=palette[index]),
            classes[index],
            type="button",
            class_="chip",
            data_class=index,
            aria_pressed="false",
        )
        for index in (held if len(held) <= MOST_BUTTONS else ())
    )
    return element(
        "div",
        chosen,
        element("span", chips, class_="chips"),
        class_="tools",
        role="group",
        aria_label="Filter by class",
    )


def _kind_tools() -> Html:
    chips = joined(
        element(
            "button",
            charts.swatch(kind_look(kind)),
            KIND_NAMES[kind],
            type="button",
            class_="chip",
            data_kind=kind,
            data_many=KIND_PLURALS[kind],
            title=KIND_MEANINGS[kind],
            aria_pressed="false",
        )
        for kind in KINDS
    )
    label = element("span", "Most of this error kind first", id="kind-label")
    unlabelled = element("span", charts.swatch(color=VOID), "unlabelled", class_="named")
    return element(
        "div",
        label,
        element("span", chips, class_="chips"),
        unlabelled,
        class_="tools",
        role="group",
        aria_labelledby="kind-label",
    )


def opacity(name: str) -> Html:
    """The slider of what lies over the images."""
    slider = element("input", type="range", min="0", max="100", value="65", class_="opacity", id=name)
    return element("label", "Labels over the image ", slider, class_="slider")


def _card(image: WorstImage, place: int, classes: list[str], palette: list[list[int]]) -> Html:
    accuracy = f"mIoU {percent(image.miou)} %, pixel accuracy {percent(image.pixel_accuracy)} %"
    held = [
        element("span", charts.swatch(color=palette[index]), classes[index], class_="named") for index in image.classes
    ]
    enlarge = element("span", "Enlarge ", class_="hidden")
    return element(
        "li",
        element("h3", image.name),
        element("p", f"{accuracy}, {image.width} by {image.height} px", class_="facts"),
        element("p", *held, class_="hint held"),
        charts.stacked([(kind_look(kind), share, told) for kind, share, told in _shares(image)]),
        element("button", enlarge, _panels(image, classes), type="button", class_="open"),
        class_="image",
        data_place=place,
        data_classes=" ".join(map(str, image.classes)),
        **{f"data_{kind}": image.errors.get(kind, 0) for kind in KINDS},
    )


def _shares(image: WorstImage) -> list[tuple[str, float, str]]:
    """(kind, its share of the image's wrong pixels, in words) of the kinds there are."""
    wrong = sum(image.errors.values())
    found = [(kind, image.errors.get(kind, 0)) for kind in KINDS if image.errors.get(kind, 0)]
    return [(kind, n / wrong, f"{KIND_NAMES[kind]} {percent(n / wrong, 0)} %") for kind, n in found]


def _panels(image: WorstImage, classes: list[str]) -> Html:
    held = ", ".join(classes[index] for index in image.classes)
    shares = _shares(image)
    errors = ", ".join(told for _, _, told in shares) or "none"
    key = [element("span", charts.swatch(kind_look(kind)), told, class_="named") for kind, _, told in shares]
    layers = [
        ("truth", "Truth", [], image.truth, f"truth of {image.name}; in truth or prediction: {held}"),
        ("prediction", "Prediction", [], image.prediction, f"prediction for {image.name}"),
        ("kinds", "Error kinds ", key, image.error_kinds, f"errors in {image.name}: {errors}"),
    ]
    # Flat pixels stay sharp when a small image is enlarged.
    sharp = " sharp" if image.width < SHARP_BELOW else ""
    first = element("img", src=data_url(image.input, "jpeg"), alt=f"input {image.name}", class_="under")
    panels = [element("span", element("span", first, class_=f"stack{sharp}"), element("span", "Input"), class_="panel")]
    for look, caption, more, png, alt in layers:
        over = element("img", src=data_url(png, "png"), alt=alt, class_="over")
        stack = element("span", over, class_=f"stack {look}{sharp}")
        panels.append(element("span", stack, element("span", caption, *more), class_="panel"))
    return element("span", *panels, class_="panels")


def data_url(content: bytes, form: str) -> str:
    """A picture's bytes as an address, so that the page needs no other file."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
