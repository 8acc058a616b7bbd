"""HTML that cannot be injected: every text is escaped unless it was built here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

VOID_ELEMENTS = {"meta", "link", "img", "input", "br", "col"}
Child = object
"""`Html` is taken as it is, None is nothing, anything else is escaped as text."""


class Html(str):
    """A piece of finished markup."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as inert text, for an element or a quoted attribute.

    A file name that is no UTF-8 keeps its bytes as \\udcXX in Python, which no file can hold: they are spelled out.
    """
    printable = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return Html(html.escape(printable, quote=True))


def joined(children: Iterable[Child]) -> Html:
    """Pieces one after the other."""
    return Html("".join(_child(child) for child in children))


def element(name: str, /, *children: Child, **attributes: object) -> Html:
    """`element("td", 3, class_="n", data_x="1")` -> `<td class="n" data-x="1">3</td>`.

    Attributes: None and False leave one out, True gives it without a value, underscores become hyphens.
    """
    opened = f"<{name}" + "".join(_attribute(key, value) for key, value in attributes.items()) + ">"
    return Html(opened if name in VOID_ELEMENTS else f"{opened}{joined(children)}</{name}>")


def _child(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else text(child)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def number(value: object) -> float | None:
    """A finite number, or None: metrics.json writes NaN as null."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def percent(value: object, digits: int = 1) -> str:
    """A score in [0, 1] in percent without the sign; `-` where there is none."""
    found = number(value)
    return "-" if found is None else f"{100 * found:.{digits}f}"


def count(value: object) -> str:
    """`12,345`."""
    found = number(value)
    return "-" if found is None else f"{round(found):,}"


def span_of(interval: object, digits: int = 1) -> str:
    """`70.1 to 72.9`; `-` where there is no interval."""
    low, high = ends(interval)
    return "-" if low is None or high is None else f"{percent(low, digits)} to {percent(high, digits)}"


def ends(interval: object) -> tuple[float | None, float | None]:
    """Both ends of an interval; None for one that is missing or NaN."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None, None
    return number(interval[0]), number(interval[1])
