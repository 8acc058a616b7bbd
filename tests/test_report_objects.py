"""The page of single objects as a reader has it: in a real browser where there is one, and as text everywhere."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import BOMB, Browser, Outline

from segtrain.instances import Detections, Instances, boxes_around
from segtrain.metrics.objects import JudgedObjects
from segtrain.object_gallery import OUTCOME_COLORS, ObjectGallery, WorstObjects
from segtrain.report.charts import Line, small_chart
from segtrain.report.objects import instance_page
from segtrain.report.objects_curves import mean_precision
from segtrain.types import Record

CLASSES = ["background", "cat", "dog", "emu"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
NAN = float("nan")


def made_scores(names: list[str]) -> dict[str, Any]:
    """Scores of three classes, the last of which has no object."""
    things = names[1:]
    scores: dict[str, Any] = {}
    for kind, ap in (("box", 0.5), ("mask", 0.4), ("boundary", 0.3)):
        scores |= {f"{kind}_ap": ap, f"{kind}_ap50": ap + 0.3, f"{kind}_ap75": ap - 0.125}
        scores |= {f"{kind}_ap_{size}": value for size, value in (("small", 0.125), ("medium", NAN), ("large", 0.625))}
        scores |= {f"{kind}_ar{most}": 0.1 + most / 200 for most in (1, 10, 100)}
        scores |= {f"{kind}_ar_{size}": 0.25 for size in ("small", "medium", "large")}
        scores[f"{kind}_ap_per_class"] = dict(zip(things, [ap + 0.1, ap - 0.1, NAN], strict=True))
    scores["instances_per_class"] = dict(zip(things, [1200, 34, 0], strict=True))
    scores["protocol"] = {"dataset": "Made", "inference": {"protocol": "InstanceInference"}, "label_map": None}
    return {**scores, "images": 17, "split": "val"}


def made_curves(names: list[str]) -> dict[str, dict[str, list[float]]]:
    recall = np.linspace(0, 1, 101).tolist()
    return {
        name: {"recall": recall, "precision": [1 - 0.5 * x for x in recall], "precision75": [0.25] * 101}
        for name in names[1:3]
    }


def made_sizes(names: list[str]) -> dict[str, dict[str, float]]:
    known = {"all": 0.3, "small": 0.111, "medium": NAN, "large": 0.777}
    return {name: {**known, "all": 0.3 + 0.2 * place} for place, name in enumerate(names[1:3])} | {
        names[3]: dict.fromkeys(known, NAN)
    }


def judged(place: int, true: list[int], detected: list[int], name: str | None = None) -> JudgedObjects:
    """An image with a square per class index; a detection of the same class lies on it."""
    masks = torch.zeros(len(CLASSES), 30, 40, dtype=torch.uint8)
    for label in range(1, len(CLASSES)):
        masks[label, 5:15, 10 * label : 10 * label + 8] = 1
    detections = Detections(
        boxes_around(masks[detected]), torch.tensor(detected), torch.full((len(detected),), 0.9), masks[detected]
    )
    image = np.random.default_rng(place).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    truth = Instances.of(masks[true], torch.tensor(true))
    return JudgedObjects(torch.from_numpy(image), detections, truth, Record(name or f"image{place}"), place)


def worst_of_three(names: list[str] = CLASSES, name: str | None = None) -> list[WorstObjects]:
    """Two missed; one found, one missed, one invented; two found, two invented."""
    gallery = ObjectGallery(names, PALETTE)
    for place, (true, detected) in enumerate([([1, 2], []), ([1, 2], [1, 3]), ([1, 3], [3, 3, 1, 2])]):
        gallery.update(judged(place, true, detected, name and f"{name}{place}"))
    return gallery.worst()


def page_of(
    names: list[str] = CLASSES, worst: list[WorstObjects] | None = None, title: str = "made", **changed: Any
) -> str:
    return instance_page(
        title,
        {**made_scores(names), **changed},
        names,
        PALETTE,
        curves=made_curves(names),
        by_size=made_sizes(names),
        by_threshold={"mask": [0.7 - 0.07 * step for step in range(10)], "box": [0.8] * 9 + [NAN]},
        worst=worst_of_three(names) if worst is None else worst,
    )


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    """The made page in the browser."""
    file = tmp_path / "report.html"
    file.write_text(page_of(), encoding="utf-8")
    browser.open(file)
    return browser


def cells_of(page: str, name: str) -> list[str]:
    """The text of each cell in the row of that class."""
    (row,) = re.findall(rf'<tr[^>]* data-name="{name}"[^>]*>(.*?)</tr>', page)
    return [Outline(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]


def test_the_page_says_the_scores_and_where_they_are_low() -> None:
    said = Outline(page_of()).text
    for words in ("mask AP40.0 %", "box AP50.0 %", "mask AP5070.0 %", "mask AP7527.5 %", "boundary AP30.0 %"):
        assert words in said
    assert "There were 1,234 objects to find. The weakest class is dog with mask AP 30.0 %." in said
    assert "Small objects reach AP 12.5 %, large ones 62.5 %." in said
    assert "by 75 % instead of 50 %, AP is 42.5 points lower." in said
    assert "2 of 3 classes" in said
    assert "images17val" in said


def test_a_class_has_its_scores_in_one_row() -> None:
    page = page_of()
    # bar, mask AP, AP50 (the area under its curve), box AP, boundary AP, small, medium, large, objects
    assert cells_of(page, "cat") == ["cat", "", "50.0", "75.0", "60.0", "40.0", "11.1", "-", "77.7", "1,200"]
    assert cells_of(page, "emu") == ["emu", "", *["-"] * 7, "0"]
    assert 'data-name="background"' not in page


def test_without_boundary_scores_there_is_no_column_for_them() -> None:
    scores = {key: value for key, value in made_scores(CLASSES).items() if not key.startswith("boundary")}
    page = instance_page(
        "made", scores, CLASSES, PALETTE, curves={}, by_size={}, by_threshold={"mask": [0.5] * 10}, worst=[]
    )
    assert "oundary" not in Outline(page).text


def test_nan_is_a_dash_and_never_a_word() -> None:
    for unknown in (NAN, None):
        page = page_of(mask_ap=unknown, mask_ap75=unknown)
        assert not re.search(r"\b(nan|NaN|None|null|inf)\b", Outline(page).text)
        assert "nan" not in re.sub(r"base64,[^\"]*|<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)


def test_an_evaluation_of_nothing_is_said_so() -> None:
    scores = {key: (NAN if isinstance(value, float) else value) for key, value in made_scores(CLASSES).items()}
    nothing = dict.fromkeys(CLASSES[1:], NAN)
    scores |= {f"{kind}_ap_per_class": nothing for kind in ("box", "mask", "boundary")}
    scores["instances_per_class"] = dict.fromkeys(CLASSES[1:], 0)
    page = instance_page(
        "made", scores, CLASSES, PALETTE, curves={}, by_size={}, by_threshold={"mask": [NAN] * 10}, worst=[]
    )
    said = Outline(page).text
    for words in ("There was no object to find.", "No class has an object.", "No image has an object, true or found."):
        assert words in said
    assert "<dialog" not in page


def test_without_a_protocol_a_line_says_what_computes_it() -> None:
    assert "Not computed: python -m segtrain evaluate does." in Outline(page_of(protocol=None)).text
    assert "ot computed" not in Outline(page_of()).text


def test_headings_landmarks_tables_and_alternatives() -> None:
    outline = Outline(page_of())
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
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


def test_each_image_tells_what_was_found_missed_and_invented() -> None:
    outline = Outline(page_of())
    said = outline.text
    assert "Quality 0.0 %: 0 found, 2 missed (cat, dog), 0 invented; 40 by 30 px" in said
    assert "Quality 50.0 %: 1 found, 1 missed (dog), 1 invented (emu)" in said
    assert "2 invented (" in said
    assert "outcomes in image0: 0 found, 2 missed (cat, dog), 0 invented" in [one["alt"] for one in outline.all("img")]
    assert "emu 0.90" in said


def test_the_area_under_a_curve_is_its_ap() -> None:
    assert mean_precision([1.0] * 50 + [0.0] * 51) == 50 / 101
    said = Outline(page_of()).text
    assert "dogAP 50.0, AP50 75.0, AP75 25.0" in said


def test_a_small_chart_draws_its_points_where_they_belong() -> None:
    chart = small_chart([Line("one", [(0.0, 0.0), (1.0, 1.0)], "a", marks=False)], "told")
    assert 'd="M20.0 89.0L155.0 5.0"' in chart
    assert 'aria-label="told"' in chart


def test_of_many_classes_the_weakest_are_open_and_the_never_found_are_named() -> None:
    names = ["background", *(f"class{number:02d}" for number in range(80))]
    recall = np.linspace(0, 1, 101).tolist()
    aps = {name: place / 100 for place, name in enumerate(names[1:])}
    curves = {
        name: {"recall": recall, "precision": [ap] * 101, "precision75": [ap / 2] * 101} for name, ap in aps.items()
    }
    scores = (
        made_scores(CLASSES)
        | {f"{kind}_ap_per_class": aps for kind in ("mask", "box", "boundary")}
        | {"instances_per_class": dict.fromkeys(aps, 3)}
    )
    by_size = {name: {"all": ap} for name, ap in aps.items()}
    palette = [[number, number, number] for number in range(81)]
    page = instance_page(
        "many", scores, names, palette, curves=curves, by_size=by_size, by_threshold={"mask": [0.5] * 10}, worst=[]
    )
    assert "Never found at an IoU of 50 %: class00." in Outline(page).text
    shown, folded = (re.findall("<h4>(.*?)</h4>", part) for part in page.split("<summary>The other", 1))
    assert shown == [f"class{number:02d}" for number in range(1, 13)]
    assert folded == [f"class{number:02d}" for number in range(13, 80)]
    assert page.count('data-name="class') == 80


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_alone_without_a_complaint_or_overflow(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(), encoding="utf-8")
    browser.open(file, width, dark)
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()]
    assert browser.overflow() <= 0
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 27)" if dark else "rgb(252, 252, 251)"
    )
    assert browser.run("[...document.images].every((one) => one.naturalWidth > 0)")


def test_names_lie_over_their_picture(opened: Browser) -> None:
    box = (
        "(one => { const r = one.getBoundingClientRect(); return [r.left, r.top, r.width, r.height].map(Math.round) })"
    )
    panel = "document.querySelector('.stack.truth')"
    assert opened.run(f"{box}({panel}.querySelector('.tags'))") == opened.run(f"{box}({panel})")
    assert opened.run(f"{box}({panel})")[3] > 50


def test_swatches_have_the_colors_of_the_pictures(opened: Browser) -> None:
    for kind, color in OUTCOME_COLORS.items():
        shown = opened.run(f"getComputedStyle(document.querySelector('.swatch .kind-{kind}')).fill")
        assert shown == f"rgb({', '.join(map(str, color))})"


def test_classes_are_sorted_by_each_button(opened: Browser) -> None:
    rows = "[...document.querySelectorAll('#class-table tbody tr')]"
    for key, order in {
        "ap": ["dog", "cat", "emu"],  # emu has no AP: it is not the weakest
        "objects": ["cat", "dog", "emu"],
        "name": ["cat", "dog", "emu"],
        "order": CLASSES[1:],
    }.items():
        opened.run(f"document.querySelector('#class-table tbody').append(...{rows}.reverse())")
        opened.run(f"document.querySelector('[data-sort={key}]').click()")
        assert opened.run(f"{rows}.map((row) => row.dataset.name)") == order


def shown_images(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "[...document.querySelectorAll('.image:not([hidden]) h3')].map((one) => one.textContent)"
    )
    return found


def test_classes_and_outcomes_filter_the_images(opened: Browser) -> None:
    assert shown_images(opened) == ["image0", "image1", "image2"]
    opened.run("document.querySelector('[data-class=\"3\"]').click()")
    assert shown_images(opened) == ["image1", "image2"]
    opened.run("document.querySelector('[data-class=\"3\"]').click()")
    opened.run("document.querySelector('[data-kind=invented]').click()")
    assert shown_images(opened) == ["image2", "image1"]
    told = opened.run("document.getElementById('worst-said').textContent")
    assert told == "2 of 3 images, most invented objects first"
    opened.run("document.querySelector('[data-kind=missed]').click()")
    assert shown_images(opened) == ["image0", "image1"]


def test_the_keyboard_opens_turns_and_closes_the_large_view(opened: Browser) -> None:
    opened.run("document.querySelector('.open').focus()")
    opened.press("Enter")
    assert opened.run("document.getElementById('large-title').textContent") == "image0"
    assert "2 missed (cat, dog)" in opened.run("document.getElementById('large-facts').textContent")
    assert opened.run("document.querySelectorAll('#large-panels img').length") == 7  # the input lies under the others
    assert opened.run("document.querySelectorAll('#large-panels .tags text').length") == 2
    opened.press("ArrowRight")
    assert opened.run("document.getElementById('large-title').textContent") == "image1"
    opened.press("Escape")
    assert opened.run("document.getElementById('large').open") is False
    assert opened.complaints() == []


def test_hostile_names_are_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    names = ["background", BOMB, "<script>window.hit=1</script>", "javascript:window.hit=1"]
    page = page_of(names, worst_of_three(names, BOMB), title=BOMB, protocol={BOMB: BOMB})
    assert len(Outline(page).all("script")) == 1
    file = tmp_path / "hostile.html"
    file.write_text(page, encoding="utf-8")
    browser.open(file, width=390)
    for button in ("#worst .open", "[data-class]", "[data-sort=name]"):
        browser.run(f"document.querySelector('{button}').click()")
    assert browser.complaints() == []
    assert browser.run("window.hit") is None
    assert browser.overflow() <= 0
    assert browser.requests() == [file.as_uri()]


def test_the_scores_that_the_metrics_give_make_every_section() -> None:
    pytest.importorskip("pycocotools")
    from segtrain.metrics.coco_ap import AveragePrecision

    precision, gallery = AveragePrecision(classes=CLASSES), ObjectGallery(CLASSES, PALETTE)
    for place, (true, detected) in enumerate([([1, 2], [1]), ([1, 2], [1, 2, 3])]):
        image = judged(place, true, detected)
        precision.update(image.detections, image.truth, image.index)
        gallery.update(image)
    content = {**precision.compute(), **gallery.compute(), "images": 2, "protocol": {"dataset": "drawn"}}
    page = instance_page(
        "drawn",
        content,
        CLASSES,
        PALETTE,
        curves=precision.curves(),
        by_size=precision.by_size(),
        by_threshold={kind: precision.by_threshold(kind) for kind in precision.kinds},
        worst=gallery.worst(),
    )
    outline = Outline(page)
    assert "ot computed" not in outline.text
    assert not re.search(r"\b(nan|None|inf)\b", outline.text)
    assert len([svg for svg in outline.all("svg") if svg.get("class") == "chart"]) == 2
    assert len([svg for svg in outline.all("svg") if svg.get("class") == "small-chart"]) == 2
    dog = precision.curves()["dog"]["precision"]
    assert cells_of(page, "dog")[3] == f"{100 * math.fsum(dog) / 101:.1f}"
    assert precision.compute()["mask_ap50"] == pytest.approx(
        np.mean([mean_precision(curve["precision"]) for curve in precision.curves().values()])
    )
