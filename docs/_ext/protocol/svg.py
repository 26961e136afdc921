"""A small writer of SVG: boxes, lines, arrows and text that is known to fit.

Coordinates are units of the viewBox, which are CSS pixels at the picture's own width. A picture
refuses to be drawn if a text leaves the viewBox or lies on another one: it is measured with the
widest letters that its font may have, so that what passes here holds in a browser.

Colours are the page's: `currentColor` and classes that protocol.css sets from its variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import atan2, cos, sin
from typing import Final

import attrs

FONT: Final = 12  # units; the smallest text is FONT_MIN
FONT_MIN: Final = 11  # CSS pixels, at any width of the page
ADVANCE: Final = 0.61  # width of a monospaced letter, in its size
HEAD: Final = 7  # length of an arrow's head


class PictureError(Exception):
    """Text that does not fit: a picture that nobody could read."""


@attrs.frozen
class Box:
    """A rectangle; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def contains(self, other: Box) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


def text_width(text: str, size: float = FONT) -> float:
    return len(text) * size * ADVANCE


def text_box(x: float, y: float, text: str, size: float, anchor: str) -> Box:
    """What a line of text covers; `y` is its middle."""
    width = text_width(text, size)
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return Box(left, y - size * 0.55, width, size * 1.1)


class Picture:
    """One SVG of `width` x `height`; `title` and `desc` are what a screen reader says."""

    def __init__(self, width: float, height: float, title: str, desc: str) -> None:
        self.width = width
        self.height = height
        self.title = title
        self.desc = desc
        self.texts: list[tuple[Box, str]] = []
        self._smallest = float(FONT)
        self._parts: list[str] = []

    def box(self, box: Box, *kinds: str, radius: float = 0) -> None:
        """A rectangle; `kinds` are classes without their prefix."""
        round_ = f' rx="{_n(radius)}"' if radius else ""
        self._parts.append(
            f'<rect x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" '
            f'height="{_n(box.height)}"{round_}{_classes("box", *kinds)}/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *kinds: str) -> None:
        self._parts.append(
            f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
            f"{_classes('line', *kinds)}/>"
        )

    def arrow(self, points: Sequence[tuple[float, float]], *kinds: str) -> None:
        """A line through `points`, or with three of them a curve; its head is at the last."""
        *_, before, end = points
        angle = atan2(end[1] - before[1], end[0] - before[0])
        neck = (end[0] - HEAD * cos(angle), end[1] - HEAD * sin(angle))
        start = f"M{_p(points[0])}"
        path = f"{start} Q{_p(before)} {_p(neck)}" if len(points) == 3 else f"{start} L{_p(neck)}"
        self._parts.append(f'<path d="{path}"{_classes("line", *kinds)}/>')
        wings = [
            (end[0] - HEAD * cos(angle + side), end[1] - HEAD * sin(angle + side))
            for side in (0.42, -0.42)
        ]
        corners = " ".join(_p(one) for one in (end, *wings))
        self._parts.append(f'<polygon points="{corners}"{_classes("head", *kinds)}/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *kinds: str,
        size: float = FONT,
        anchor: str = "middle",
    ) -> None:
        """One line whose middle is at `y`. PictureError: it leaves the picture or hits a text."""
        where = text_box(x, y, text, size, anchor)
        if not Box(0, 0, self.width, self.height).contains(where):
            raise PictureError(f"{self.title}: {text!r} leaves the picture at {x}, {y}")
        for other, said in self.texts:
            if where.overlaps(other):
                raise PictureError(f"{self.title}: {text!r} lies on {said!r} at {x}, {y}")
        self.texts.append((where, text))
        self._smallest = min(self._smallest, size)
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y + size * 0.35)}" font-size="{_n(size)}" '
            f'text-anchor="{anchor}"{_classes("text", *kinds)}>{escape(text)}</text>'
        )

    def label(self, box: Box, text: str, *kinds: str) -> None:
        """Text in the middle of `box`, in two lines where one is too long for it, or its end."""
        for size in (FONT, FONT_MIN):
            if text_width(text, size) <= box.width - 2:
                self.text(box.x + box.width / 2, box.y + box.height / 2, text, *kinds, size=size)
                return
        lines = _halves(text)
        if max(text_width(line, FONT_MIN) for line in lines) > box.width:
            lines = ["…" + text.rpartition("_")[2]]  # its end tells it from its neighbours
        if max(text_width(line, FONT_MIN) for line in lines) > box.width:
            raise PictureError(f"{self.title}: {text!r} is wider than its box")
        y = box.y + box.height / 2 - 7 * (len(lines) - 1)
        for at, line in enumerate(lines):
            self.text(box.x + box.width / 2, y + 14 * at, line, *kinds, size=FONT_MIN)

    def render(self) -> str:
        """The element; where the page is too narrow for its text to be read, it is scrolled."""
        least = self.width * FONT_MIN / self._smallest
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="xp" role="img" '
            f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" '
            f'style="width:100%;max-width:{_n(self.width)}px;min-width:{_n(least)}px" '
            f'aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title><desc>{escape(self.desc)}</desc>"
            + "".join(self._parts)
            + "</svg>"
        )


def _halves(text: str) -> list[str]:
    """At an underscore, dot or blank near its middle, else there."""
    middle = len(text) / 2
    breaks = [at + 1 for at, letter in enumerate(text) if letter in "_. "]
    at = min(breaks, key=lambda one: abs(one - middle), default=round(middle))
    return [text[:at].rstrip(), text[at:]]


def _classes(*kinds: str) -> str:
    return f' class="{" ".join(f"xp-{kind}" for kind in kinds)}"'


def _n(value: float) -> str:
    """A number without what its binary form adds."""
    return f"{round(value, 2):g}"


def _p(point: tuple[float, float]) -> str:
    return f"{_n(point[0])} {_n(point[1])}"
