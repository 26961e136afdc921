"""Message sequence charts of handshakes that were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.abi.xs import XS

from .states import state_name
from .svg import FONT_MIN, Box, Picture, text_width
from .traces import WRITES, Asked, Run

WIDTH: Final = 356
FRONT: Final = 60
BACK: Final = 296
TOP: Final = 34
LINE: Final = 15
GAP: Final = 10
DRIVERS: Final = {
    ("vif", "windows"): "XenVif", ("vif", "linux"): "netfront",
    ("vbd", "windows"): "XenVbd", ("vbd", "linux"): "blkfront",
}  # fmt: skip


@attrs.frozen
class Event:
    """One thing in a chart: a state that `who` wrote, or `keys` that it wrote together."""

    who: str
    state: State | None = None
    keys: tuple[str, ...] = ()
    in_transaction: bool = False


def told(value: str, key: str) -> str:
    """What stands in a chart: numbers that any other run would have different are not told."""
    if key.rpartition("/")[2].startswith(("event-channel", "tx-ring-ref", "rx-ring-ref",
                                          "ring-ref", "ctrl-ring-ref")):  # fmt: skip
        return f"{key} = …"
    return f"{key} = {value}"


def events(run: Run) -> Iterator[Event]:
    """What both ends wrote, in order; of the toolstack what it did in the midst of it."""
    written = [one for one in run.asked if one.op in WRITES and not one.error and one.key]
    created = [one for one in written if one.who == "toolstack" and one.tx]
    yield Event("toolstack", keys=(f"both directories, {len(created)} keys",), in_transaction=True)
    rest = [one for one in written if one not in created]
    for group, found in groupby(rest, lambda one: (one.who, one.tx, one.key == "state")):
        who, tx, is_state = group
        asked = list(found)
        if is_state:
            for one in asked:
                yield Event(who, state=State(int(one.value or "0")), in_transaction=bool(tx))
        else:
            keys = tuple(_key(one) for one in asked)
            yield Event(who, keys=keys, in_transaction=bool(tx))


def _key(one: Asked) -> str:
    if one.op is XS.RM:
        return f"remove {one.key}"
    mark = "frontend's " if one.who == "backend" and one.end == "frontend" else ""
    return mark + told(one.value or "", one.key)


def draw(run: Run) -> Picture:
    found = list(events(run))
    height = TOP + sum(_height(one) + GAP for one in found) + GAP
    driver = DRIVERS[run.kind, run.frontend]
    back = f"{run.backend} {'netback' if run.kind == 'vif' else 'block'}"
    said = "; ".join(_said(one) for one in found)
    picture = Picture(
        WIDTH, height, f"{driver} connects to a {run.backend} backend", f"In order: {said}."
    )
    for x, name, kind in ((FRONT, driver, "front"), (BACK, back, "back")):
        picture.box(Box(x - 56, 4, 112, 22), kind, radius=5)
        picture.label(Box(x - 56, 4, 112, 22), name, "strong")
        picture.line(x, 26, x, height - 4, "life")
    y = float(TOP)
    for one in found:
        _draw(picture, one, y)
        y += _height(one) + GAP
    return picture


def _said(event: Event) -> str:
    if event.state is not None:
        return f"{event.who} writes state {state_name(event.state)}"
    return f"{event.who} writes {', '.join(event.keys)}"


def _height(event: Event) -> float:
    if event.state is not None:
        return 24
    return LINE * (len(event.keys) + (1 if _title(event) else 0)) + 8


def _title(event: Event) -> str:
    if event.who == "toolstack":
        return "toolstack" if event.in_transaction else "hotplug script"
    return "one transaction" if event.in_transaction else ""


def _draw(picture: Picture, event: Event, y: float) -> None:
    if event.state is not None:
        start, end = (FRONT, BACK) if event.who == "frontend" else (BACK, FRONT)
        kind = {"frontend": "front", "backend": "back"}.get(event.who, "weak")
        picture.arrow([(start, y + 18), (end, y + 18)], kind)
        text = f"state = {state_name(event.state)}"
        if event.in_transaction:
            text += " (same)"  # transaction as the keys before it
        picture.text((FRONT + BACK) / 2, y + 8, text, "halo", "strong")
        return
    title = _title(event)
    lines = ([title] if title else []) + list(event.keys)
    width = max(text_width(one, FONT_MIN) for one in lines) + 14
    x = {"frontend": 4.0, "backend": WIDTH - 4 - width}.get(event.who, (WIDTH - width) / 2)
    kind = {"frontend": "front", "backend": "back"}.get(event.who, "plain")
    box = Box(x, y, width, _height(event))
    picture.box(box, "paper")
    picture.box(box, kind, radius=3)
    for index, text in enumerate(lines):
        style = ["dim"] if title and not index else []
        picture.text(
            x + 7, y + 4 + LINE * (index + 0.5), text, *style, size=FONT_MIN, anchor="start"
        )
