"""Bars and curves as inline SVG: sized by attributes, since the page's policy allows no style attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segtrain.report.markup import Html, element, ends, joined, number

LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 44, 12, 304, 204


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) in data units, and the look `a`, `b` or `c` (color, dashes and marks differ)."""

    name: str
    points: list[tuple[float, float]]
    look: str
    marks: bool = True
    """Whether its points are marked: not where they are so many that they would make the curve."""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with labelled ticks."""

    name: str
    low: float
    high: float
    ticks: list[tuple[float, str]]

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)


def bar(value: object, interval: object = None, look: str = "score") -> Html:
    """A bar of `value` in [0, 1] with a whisker; hidden from screen readers, which read the number beside it."""
    length, (low, high) = number(value), ends(interval)
    parts = [element("rect", class_="track", width="100", height="10")]
    if length is not None:
        parts.append(element("rect", class_=look, width=_clipped(length), height="10"))
    if low is not None and high is not None:
        path = f"M{_clipped(low)} 5H{_clipped(high)}M{_clipped(low)} 2V8M{_clipped(high)} 2V8"
        parts.append(element("path", d=path, class_="whisker"))
    return _strip(parts)


def stacked(shares: Sequence[tuple[str, float, str]]) -> Html:
    """Pieces (look, share of the full width, tip) one after the other."""
    parts, start = [element("rect", class_="track", width="100", height="10")], 0.0
    for look, share, tip in shares:
        if share > 0:
            piece = element(
                "rect",
                element("title", tip),
                class_=look,
                x=f"{100 * start:.2f}",
                width=f"{100 * share:.2f}",
                height="10",
            )
            parts.append(piece)
        start += share
    return _strip(parts)


def swatch(look: str | None = None, color: Sequence[int] | None = None) -> Html:
    """A small square of a legend, by style class or by RGB color."""
    fill = None if color is None else "#" + "".join(f"{value:02x}" for value in color)
    square = element("rect", class_=look, fill=fill, x="0.5", y="0.5", width="11", height="11", rx="2")
    return element("svg", square, class_="swatch", viewBox="0 0 12 12", aria_hidden="true")


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, described: str, *, diagonal: bool = False) -> Html:
    """Curves over two axes; `described` is the text alternative."""
    parts = [_grid(x, y)]
    if diagonal:
        ideal = [(x.low, y.low), (x.high, y.high)]
        parts.append(element("path", d=_path(ideal, x, y), class_="ideal"))
    for line in lines:
        parts.append(element("path", d=_path(line.points, x, y), class_=f"line {line.look}"))
        parts.extend(_mark(line, point, x, y) for point in line.points if line.marks)
    picture = element("svg", *parts, viewBox="0 0 360 264", role="img", aria_label=described, class_="chart")
    return element("figure", picture, legend(lines) if len(lines) > 1 else None)


def legend(lines: Sequence[Line]) -> Html:
    """What each curve is."""
    return element("ul", *[element("li", _key(line), line.name) for line in lines], class_="legend")


def small_chart(lines: Sequence[Line], described: str) -> Html:
    """Curves over two axes from 0 to 1, small enough to stand many in a row; `described` is the text alternative."""
    left, top, width, height = 20, 5, 135, 84
    parts = []
    for share, label in ((0, "0"), (0.5, "50"), (1, "100")):
        across, down = left + width * share, top + height * (1 - share)
        parts.append(element("path", d=f"M{across} {top}v{height}M{left} {down}h{width}", class_="rule"))
        parts.append(element("text", label, x=across, y=top + height + 11, text_anchor="middle"))
        parts.append(element("text", label, x=left - 3, y=down + 3, text_anchor="end"))
    for line in lines:
        spots = (f"{left + width * x:.1f} {top + height * (1 - y):.1f}" for x, y in line.points)
        parts.append(element("path", d="M" + "L".join(spots), class_=f"line {line.look}"))
    return element("svg", *parts, viewBox="0 0 165 102", role="img", aria_label=described, class_="small-chart")


def _grid(x: Axis, y: Axis) -> Html:
    parts = []
    for value, label in x.ticks:
        across, _ = _spot((value, y.low), x, y)
        parts.append(element("path", d=f"M{across:.1f} {TOP}v{PLOT_HEIGHT}", class_="rule"))
        parts.append(element("text", label, x=f"{across:.1f}", y=TOP + PLOT_HEIGHT + 16, text_anchor="middle"))
    for value, label in y.ticks:
        _, down = _spot((x.low, value), x, y)
        parts.append(element("path", d=f"M{LEFT} {down:.1f}h{PLOT_WIDTH}", class_="rule"))
        parts.append(element("text", label, x=LEFT - 6, y=f"{down + 4:.1f}", text_anchor="end"))
    middle = TOP + PLOT_HEIGHT / 2
    parts.append(element("text", x.name, x=LEFT + PLOT_WIDTH / 2, y=TOP + PLOT_HEIGHT + 38, text_anchor="middle"))
    parts.append(element("text", y.name, text_anchor="middle", transform=f"translate(11 {middle}) rotate(-90)"))
    return joined(parts)


def _spot(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    return LEFT + PLOT_WIDTH * x.place(point[0]), TOP + PLOT_HEIGHT * (1 - y.place(point[1]))


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join("{:.1f} {:.1f}".format(*_spot(point, x, y)) for point in points) if points else ""


def _mark(line: Line, point: tuple[float, float], x: Axis, y: Axis) -> Html:
    across, down = _spot(point, x, y)
    tip = element("title", f"{line.name}: {100 * point[1]:.1f}")
    if line.look == "a":
        return element("circle", tip, class_="mark a", cx=f"{across:.1f}", cy=f"{down:.1f}", r="3.5")
    if line.look == "c":
        return element("path", tip, class_="mark c", d=f"M{across:.1f} {down - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z")
    corner = {"x": f"{across - 3:.1f}", "y": f"{down - 3:.1f}"}
    return element("rect", tip, class_="mark b", width="6", height="6", **corner)


def _key(line: Line) -> Html:
    stroke = element("path", d="M0 6h28", class_=f"line {line.look}")
    shape = {
        "a": element("circle", cx="14", cy="6", r="3.5", class_="mark a"),
        "b": element("rect", x="11", y="3", width="6", height="6", class_="mark b"),
        "c": element("path", d="M14 1.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z", class_="mark c"),
    }[line.look]
    return element("svg", stroke, shape if line.marks else None, viewBox="0 0 28 12", class_="key", aria_hidden="true")


def _strip(parts: list[Html]) -> Html:
    return element("svg", *parts, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


def _clipped(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}"
