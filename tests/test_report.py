"""The report as a reader has it: in a real browser where there is one, and as text everywhere."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import BOMB, LATER, Browser, Outline

from segtrain.gallery import KIND_COLORS, Gallery, WorstImage, labels, photo
from segtrain.metrics.anatomy import KINDS, ErrorAnatomy
from segtrain.metrics.base import Judged
from segtrain.metrics.bootstrap import PerImageCounts, intervals, paired
from segtrain.metrics.boundary import BoundaryScores
from segtrain.metrics.calibration import Calibration
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.report.comparison import comparison_page, protocol_diff
from segtrain.report.markup import element, text
from segtrain.report.page import evaluation_page
from segtrain.types import Record


def drawn_image(place: int, classes: list[int], errors: dict[str, int], name: str | None = None) -> WorstImage:
    rng = np.random.default_rng(place)
    indices = np.zeros((30, 40), np.uint8)
    indices[5:20, 8:30] = classes[-1]
    palette = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    kinds = np.where(indices == 0, 0, 3).astype(np.uint8)
    return WorstImage(
        name=name or f"image{place}",
        index=place,
        miou=0.1 * place,
        pixel_accuracy=0.5,
        height=30,
        width=40,
        classes=classes,
        errors=dict.fromkeys(KINDS, 0) | errors,
        input=photo(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)),
        truth=labels(indices, palette),
        prediction=labels(np.zeros_like(indices), palette),
        error_kinds=labels(kinds, [[0, 0, 0], *map(list, KIND_COLORS.values())]),
    )


def worst_of_three() -> list[WorstImage]:
    return [
        drawn_image(0, [0, 1], {"missed_region": 10, "boundary_slip": 2}),
        drawn_image(1, [0, 2], {"missed_region": 70}),
        drawn_image(2, [0, 1, 2], {"class_confusion": 5}),
    ]


def by_class(names: list[str], values: list[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def made_scores(names: list[str]) -> dict[str, Any]:
    """Scores of every section for four classes, the last of which no target has."""
    counts = {"boundary_slip": 30, "class_confusion": 40, "missed_region": 20, "invented_region": 10}
    bins = [
        {"low": 0.0, "high": 0.5, "confidence": None, "accuracy": None, "pixels": 0},
        {"low": 0.5, "high": 1.0, "confidence": 0.8, "accuracy": 0.7, "pixels": 500},
    ]
    return {
        "miou": 0.625,
        "mean_accuracy": 0.7,
        "pixel_accuracy": 0.8,
        "iou": by_class(names, [0.9, 0.4, 0.6, float("nan")]),
        "accuracy": by_class(names, [0.95, 0.5, 0.7, None]),
        "precision": by_class(names, [0.95, 0.5, 0.7, None]),
        "pixels": by_class(names, [0.6, 0.1, 0.3, 0.0]),
        "classes_counted": 3,
        "confusion": [[290, 5, 5, 0], [20, 25, 5, 0], [55, 10, 85, 0], [0, 0, 0, 0]],
        "images": 3,
        "split": "val",
        "interval": {
            "level": 0.95,
            "miou": [0.6, 0.65],
            "pixel_accuracy": [0.78, 0.82],
            "iou": by_class(names, [[0.88, 0.92], [0.3, 0.5], [0.55, 0.65], [None, None]]),
        },
        "boundary": {
            "dilation_ratio": 0.02,
            "f_tolerance": 0.0075,
            "iou": by_class(names, [0.5, 0.3, 0.4, None]),
            "mean_iou": 0.4,
            "mean_min_iou": 0.39,
            "mean_f": 0.55,
            "trimap": {"radius": [1, 4], "miou": [0.3, 0.5], "pixel_accuracy": [0.5, 0.7], "pixels": [100, 300]},
        },
        "calibration": {
            "ece": 0.1,
            "temperature": 1.6,
            "ece_at_temperature": 0.02,
            "bins": bins,
            "bins_at_temperature": bins,
        },
        "anatomy": {
            "pixels": counts,
            "share_of_errors": {kind: n / 100 for kind, n in counts.items()},
            "by_class": dict.fromkeys(names[:3], counts),
            "by_size": {"small": counts, "medium": counts, "large": dict.fromkeys(counts, 0)},
            "pairs": [{"target": names[2], "prediction": names[1], "pixels": 10}],
            "gain": {"boundary_slip": 0.03, "class_confusion": 0.11, "missed_region": 0.02, "invented_region": 0.01},
            "radius": {"share_of_diagonal": 0.0075, "least_px": 2.0},
        },
        "protocol": {"dataset": "Made", "inference": {"protocol": "whole", "flip": False}, "label_map": None},
    }


CLASSES = ["ground", "cat", "dog", "emu"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def page_of(names: list[str] = CLASSES, worst: list[WorstImage] | None = None, title: str = "made") -> str:
    return evaluation_page(title, made_scores(names), names, PALETTE, worst_of_three() if worst is None else worst)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    """The made page in the browser."""
    file = tmp_path / "report.html"
    file.write_text(page_of(), encoding="utf-8")
    browser.open(file)
    return browser


def test_the_page_names_what_goes_wrong_in_words() -> None:
    said = Outline(page_of()).text
    assert "20.0 % of the labelled pixels are wrong, 40 % of these by class confusions" in said
    assert "The weakest class is cat with IoU 40.0 %." in said
    assert "Most often dog is taken for ground (55 pixels)." in said
    assert "Without class confusions mIoU would rise by 11.0 points." in said
    assert "95 % interval: 60.0 to 65.0" in said


def test_a_perfect_and_an_empty_evaluation_are_said_so() -> None:
    scores = made_scores(CLASSES)
    for accuracy, words in ((1.0, "Every labelled pixel is right."), (None, "No labelled pixel was evaluated.")):
        page = evaluation_page("made", {**scores, "pixel_accuracy": accuracy}, CLASSES, PALETTE)
        assert words in Outline(page).text


def test_nan_is_a_dash_and_never_a_word() -> None:
    outline = Outline(page_of())
    assert not re.search(r"\b(nan|None|null|inf)\b", outline.text, re.IGNORECASE)
    (emu,) = (row for tag, row in outline.tags if tag == "tr" and row.get("data-name") == "emu")
    assert emu["data-iou"] == "-1"


@pytest.mark.parametrize(
    ("missing", "option"),
    [
        ("boundary", "scores=full"),
        ("calibration", "scores=full"),
        ("anatomy", "scores=full"),
        ("worst", "report=true"),
        ("protocol", "segtrain evaluate"),
        ("interval", "segtrain evaluate"),
    ],
)
def test_a_missing_section_says_what_computes_it(missing: str, option: str) -> None:
    scores = made_scores(CLASSES)
    scores.pop(missing, None)
    worst = [] if missing == "worst" else worst_of_three()
    said = Outline(evaluation_page("made", scores, CLASSES, PALETTE, worst)).text
    assert re.search(rf"ot computed: \S.*{option}|re not computed: .*{option}", said)
    assert "ot computed" not in Outline(page_of()).text


def test_basic_scores_alone_make_a_page() -> None:
    keep = ("miou", "mean_accuracy", "pixel_accuracy", "iou", "accuracy", "pixels", "classes_counted", "confusion")
    scores = {key: value for key, value in made_scores(CLASSES).items() if key in keep}
    assert Outline(evaluation_page("made", scores, CLASSES, PALETTE)).text.count("ot computed") == 6


def test_headings_landmarks_tables_and_alternatives() -> None:
    outline = Outline(page_of())
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [tag for tag, _ in outline.tags if tag in ("header", "nav", "main")] == ["header", "nav", "main"]
    assert all(cell.get("scope") in ("row", "col") for cell in outline.all("th"))
    assert all(image["alt"] for image in outline.all("img"))
    assert all(svg.get("aria-hidden") == "true" or svg.get("aria-label") for svg in outline.all("svg"))
    identities = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert {link["href"] for link in outline.all("a")} <= {f"#{name}" for name in identities}


def test_nothing_in_the_page_points_outside() -> None:
    page = page_of()
    outline = Outline(page)
    sources = [attributes[key] for _, attributes in outline.tags for key in ("src", "href") if key in attributes]
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    assert not [attributes for _, attributes in outline.tags if "style" in attributes]  # the policy would drop it
    assert "http" not in page.replace("http-equiv", "")


def test_markup_escapes_by_default() -> None:
    made = element("td", BOMB, 3, None, element("b", "<"), title=BOMB, data_n=0, hidden=True, id=None)
    outline = Outline(made)
    assert [tag for tag, _ in outline.tags] == ["td", "b"]
    assert outline.tags[0][1] == {"title": BOMB, "data-n": "0", "hidden": None}
    assert "".join(outline.words) == BOMB + "3<"
    assert text("caf\udce9") == "caf\\udce9"


def paired_scores() -> dict[str, Any]:
    sure = {"difference": 0.05, "interval": [0.03, 0.07], "p": 0.0002, "p_holm": 0.0008}
    unsure = {"difference": -0.01, "interval": [-0.03, 0.02], "p": 0.02, "p_holm": 0.06}
    empty = dict.fromkeys(("difference", "p", "p_holm"), float("nan")) | {"interval": [float("nan")] * 2}
    return {"miou": {**sure, "p": 0.004}, "iou": by_class(CLASSES, [sure, unsure, unsure, empty])}


def compared(names: tuple[str, ...] = ("first", "second")) -> str:
    scores = made_scores(CLASSES)
    other = {**scores, "protocol": {**scores["protocol"], "inference": {"protocol": "whole", "flip": True}}}
    runs = [{"name": name, "scores": scores if place == 0 else other} for place, name in enumerate(names)]
    values = {"optimizer.lr": [0.1 * place for place in range(len(names))]}
    return comparison_page(runs, values, {names[-1]: paired_scores()})


def test_a_comparison_shows_differences_and_marks_only_the_sure_ones() -> None:
    page = compared()
    said = Outline(page).text
    for words in ("+5.0", "+3.0 to +7.0", "<0.001", "-1.0", "0.060", "optimizer.lr", "inference.flip"):
        assert words in said
    assert page.count('class="n better"') == 2  # mIoU and the ground
    assert 'class="n worse"' not in page  # p is 0.02, but Holm's is 0.06
    assert "dataset" not in said  # the same in both


def test_protocols_are_compared_name_by_name() -> None:
    cards = [{"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}, "d": None}, {"a": 1}]
    runs = [{"name": str(i), "scores": {"protocol": card}} for i, card in enumerate(cards)]
    assert protocol_diff(runs) == {"b.c": ["1, 2", "1, 3", "-"]}


@pytest.mark.parametrize("names", [("alone",), ("same", "same")])
def test_a_comparison_needs_two_runs_to_tell_apart(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two or more runs of different names"):
        compared(names)


def test_a_comparison_needs_a_value_of_every_run() -> None:
    runs = [{"name": name, "scores": made_scores(CLASSES)} for name in "ab"]
    with pytest.raises(ValueError, match="2 values per key, not so for \\['x'\\]"):
        comparison_page(runs, {"x": [1]}, {})


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_alone_without_a_complaint_or_overflow(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    for name, page in (("report", page_of()), ("comparison", compared(("first", "second", "third")))):
        file = tmp_path / f"{name}.html"
        file.write_text(page, encoding="utf-8")
        browser.open(file, width, dark)
        assert browser.complaints() == []
        assert browser.requests() == [file.as_uri()]
        assert browser.overflow() <= 0
        shown = browser.run("getComputedStyle(document.body).backgroundColor")
        assert shown == ("rgb(21, 23, 27)" if dark else "rgb(252, 252, 251)")
        assert browser.run("[...document.images].every((one) => one.naturalWidth > 0)")


def test_the_policy_stops_what_is_not_the_page_s_own(opened: Browser) -> None:
    opened.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit=1\">')")
    opened.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit=1'}))")
    opened.run("fetch('https://example.org').catch(() => 0)")
    assert len(opened.complaints()) >= 3
    assert opened.run("window.hit") is None


def shown_images(browser: Browser) -> list[str]:
    names = "[...document.querySelectorAll('.image:not([hidden]) h3')].map((one) => one.textContent)"
    found: list[str] = browser.run(names)
    return found


def test_a_class_filters_the_images_by_select_and_by_button(opened: Browser) -> None:
    assert shown_images(opened) == ["image0", "image1", "image2"]
    choose = (
        "s => { const e = document.getElementById('class-filter'); e.value = s; e.dispatchEvent(new Event('change')) }"
    )
    opened.run(f"({choose})('1')")
    assert shown_images(opened) == ["image0", "image2"]
    assert opened.run("document.getElementById('worst-said').textContent") == "2 of 3 images"
    assert opened.run("getComputedStyle(document.querySelector('.image[hidden]')).display") == "none"
    opened.run("document.querySelector('[data-class=\"2\"]').click()")
    assert shown_images(opened) == ["image1", "image2"]
    assert opened.run("document.querySelector('[data-class=\"2\"]').getAttribute('aria-pressed')") == "true"
    opened.run("document.querySelector('[data-class=\"2\"]').click()")
    assert shown_images(opened) == ["image0", "image1", "image2"]


def test_an_error_kind_puts_its_worst_first_and_hides_images_without_it(opened: Browser) -> None:
    opened.run("document.querySelector('[data-kind=missed_region]').click()")
    assert shown_images(opened) == ["image1", "image0"]
    assert "most missed regions first" in opened.run("document.getElementById('worst-said').textContent")
    opened.run("document.querySelector('[data-kind=missed_region]').click()")
    assert shown_images(opened) == ["image0", "image1", "image2"]


def test_the_keyboard_opens_turns_and_closes_the_large_view(opened: Browser) -> None:
    opened.run("document.querySelector('.open').focus()")
    assert opened.run("document.getElementById('large').open") is False
    opened.press("Enter")
    assert opened.run("document.getElementById('large').open") is True
    assert opened.run("document.getElementById('large-title').textContent") == "image0"
    assert opened.run("document.querySelectorAll('#large-panels img').length") == 7  # the input lies under the others
    opened.press("ArrowRight")
    assert opened.run("document.getElementById('large-title').textContent") == "image1"
    opened.press("Escape")
    assert opened.run("document.getElementById('large').open") is False
    opened.run(LATER)  # the event comes after the dialog is closed
    assert opened.run("document.activeElement.closest('.image').querySelector('h3').textContent") == "image1"
    assert opened.complaints() == []


def test_classes_are_sorted_by_each_button(opened: Browser) -> None:
    names = "[...document.querySelectorAll('#class-table tbody tr')].map((row) => row.dataset.name)"
    for key, order in {
        "iou": ["emu", "cat", "dog", "ground"],
        "pixels": ["ground", "dog", "cat", "emu"],
        "name": ["cat", "dog", "emu", "ground"],
        "order": CLASSES,
    }.items():
        opened.run(f"document.querySelector('[data-sort={key}]').click()")
        assert opened.run(names) == order


def test_the_arrow_keys_read_the_confusion_matrix(opened: Browser) -> None:
    opened.run("document.querySelector('#confusion-table tbody td').focus()")
    opened.press("ArrowDown")
    opened.press("ArrowRight")
    told = opened.run("document.getElementById('confusion-reading').textContent")
    assert told == "cat → cat: 25 pixels, 50.00 % of cat"
    assert opened.run("document.querySelectorAll('#confusion-table td[tabindex=\"0\"]').length") == 1


def test_the_protocol_is_copied_or_selected(opened: Browser) -> None:
    opened.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (t) => { window.copied = t }}})"
    )
    opened.run("document.getElementById('copy-protocol').click()")
    opened.run(LATER)
    lines = "dataset: Made\ninference.protocol: whole\ninference.flip: no\nlabel_map: -"
    assert opened.run("window.copied") == lines
    opened.run("navigator.clipboard.writeText = async () => { throw new Error('no') }")
    opened.run("document.getElementById('copy-protocol').click()")
    opened.run(LATER)
    assert "Made" in opened.run("getSelection().toString()")


def test_hostile_names_are_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    names = ["ground", BOMB, "<script>window.hit=1</script>", "javascript:window.hit=1"]
    worst = [drawn_image(0, [0, 1, 2], {"missed_region": 3}, name=BOMB)]
    page = page_of(names, worst, title=BOMB).replace('"Made"', BOMB)
    scores = {**made_scores(names), "protocol": {BOMB: BOMB}}
    pages = [page, evaluation_page(BOMB, scores, names, PALETTE, worst)]
    pages.append(comparison_page([{"name": n, "scores": scores} for n in (BOMB, names[2])], {BOMB: [BOMB, "'\""]}, {}))
    for place, content in enumerate(pages):
        assert len(Outline(content).all("script")) == 1
        file = tmp_path / f"{place}.html"
        file.write_text(content, encoding="utf-8")
        browser.open(file, width=390)
        for button in ("#worst .open", "[data-class]", "[data-sort=name]", "#confusion-table td"):
            browser.run(f"document.querySelector('{button}')?.click()")
        browser.run(
            "document.querySelector('#confusion-table td')?.dispatchEvent(new Event('focusin', {bubbles: true}))"
        )
        assert browser.complaints() == []
        assert browser.run("window.hit") is None
        assert browser.overflow() <= 0
        assert browser.run("document.querySelector('h1').textContent") == (BOMB if place < 2 else "Comparison")
    assert browser.requests() == [file.as_uri()]


def test_eighty_classes_stay_in_the_page_and_readable(browser: Browser, tmp_path: Path) -> None:
    names = [f"class number {i}" for i in range(80)]
    scores = {
        "pixel_accuracy": 0.8,
        "miou": 0.5,
        "iou": dict.fromkeys(names, 0.5),
        "pixels": dict.fromkeys(names, 1 / 80),
        "confusion": np.random.default_rng(0).integers(0, 50, (80, 80)).tolist(),
    }
    file = tmp_path / "many.html"
    file.write_text(evaluation_page("many", scores, names, [[i, i, i] for i in range(80)]), encoding="utf-8")
    for width in (1280, 390):
        browser.open(file, width)
        assert browser.overflow() <= 0
    cell = "document.querySelector('#confusion-table tbody td').getBoundingClientRect()"
    assert browser.run(f"{cell}.width") <= 14
    assert browser.run(f"{cell}.height") <= 16


def test_the_scores_that_the_metrics_give_make_every_section() -> None:
    rng = np.random.default_rng(0)
    matrix, counts = ConfusionMatrix(4), PerImageCounts(CLASSES)
    metrics: list[Any] = [
        BoundaryScores(CLASSES),
        Calibration(),
        ErrorAnatomy(CLASSES),
        counts,
        Gallery(CLASSES, PALETTE),
    ]
    for place in range(3):
        target = np.zeros((40, 50), np.uint8)
        target[8 : 20 + place, 10:30] = 1 + place % 2
        logits = torch.from_numpy(rng.normal(size=(4, 40, 50)).astype(np.float32))
        logits += 2.0 * torch.nn.functional.one_hot(torch.from_numpy(target).long(), 4).permute(2, 0, 1)
        prediction = logits.argmax(0).numpy().astype(np.uint8)
        image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        matrix.update(prediction, target)
        for metric in metrics:
            metric.update(Judged(logits, prediction, target, image, Record(f"drawn{place}"), place))
    found = matrix.compute()
    scores = {
        **{name: getattr(found, name) for name in ("miou", "mean_accuracy", "pixel_accuracy", "classes_counted")},
        **{name: by_class(CLASSES, getattr(found, name)) for name in ("iou", "accuracy", "pixels")},
        **{name: value for metric in metrics for name, value in metric.compute().items()},
        "confusion": matrix.counts.tolist(),
        "interval": intervals(counts, resamples=20),
        "protocol": {"dataset": "drawn"},
    }
    outline = Outline(evaluation_page("drawn", scores, CLASSES, PALETTE, metrics[-1].worst()))
    assert "ot computed" not in outline.text
    assert not re.search(r"\b(nan|None|inf)\b", outline.text)
    assert len(outline.all("li")) > 3
    assert len([svg for svg in outline.all("svg") if svg.get("class") == "chart"]) == 2
    for words in ("A slip is off by at most 0.75 % of the diagonal, or 2 px.", "band 2.0 % of the diagonal"):
        assert words in outline.text
    tested = paired(counts, counts, resamples=20)
    runs = [{"name": name, "scores": scores} for name in "ab"]
    assert "1.000" in Outline(comparison_page(runs, {}, {"b": tested})).text
