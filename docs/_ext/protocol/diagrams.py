"""Pictures of state tables."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State

from .states import SEEN, STATES, Backend, Frontend, edges, state_name
from .svg import FONT_MIN, Box, Picture, PictureError, text_box

WIDTH: Final = 356
ROW: Final = 30
BOX: Final = 22


def draw_goal(frontend: Frontend, number: int) -> Picture:
    """One goal: states of the backend on the left, what the frontend does about it on the right."""
    title, column = frontend.columns[number]
    targets = list(dict.fromkeys(column[seen] for seen in SEEN if column[seen] != "wait"))
    wide = max([len(one) for one in targets] or [4]) > 14
    right_width = 200 if wide else 118
    left_width = 122
    said = ", ".join(f"at {state_name(seen)} {column[seen]}" for seen in SEEN)
    height = len(SEEN) * ROW + 30
    width = left_width + 74 + right_width + 8
    picture = Picture(width, height, f"{frontend.name}: {title}", f"The frontend: {said}.")
    picture.text(4 + left_width / 2, 12, "backend is at", "dim", size=FONT_MIN)
    picture.text(width - 4 - right_width / 2, 12, "frontend", "dim", size=FONT_MIN)
    where = {}
    space = len(SEEN) * ROW / max(len(targets), 1)
    for index, target in enumerate(targets):
        y = 26 + space * (index + 0.5)
        where[target] = y
        box = Box(width - 4 - right_width, y - BOX / 2, right_width, BOX)
        picture.box(box, *(["front"] if target.startswith("write") else []), radius=5)
        picture.label(box, target)
    for index, seen in enumerate(SEEN):
        y = 26 + ROW * (index + 0.5)
        box = Box(4, y - BOX / 2, left_width, BOX)
        waits = column[seen] == "wait"
        picture.box(box, "ghost" if waits else "back", radius=5)
        picture.label(box, state_name(seen), *(["dim"] if waits else []))
        if not waits:
            target = column[seen]
            picture.arrow(
                [(4 + left_width, y), (width - 4 - right_width, where[target])],
                "front" if target.startswith("write") else "weak",
            )
    return picture


# Where a backend's states stand: those that backends use on a ring, the others in corners.
PLACES: Final = {
    State.INITIALISING: (190, 36), State.INIT_WAIT: (322, 150), State.CONNECTED: (282, 316),
    State.CLOSING: (98, 316), State.CLOSED: (58, 150), State.UNKNOWN: (58, 24),
    State.INITIALISED: (322, 24), State.RECONFIGURING: (58, 394), State.RECONFIGURED: (322, 394),
}  # fmt: skip
SIZE: Final = (380, 416)
NODE: Final = Box(0, 0, 112, 24)
SHARES: Final = tuple(one / 100 for one in (*range(30, 90, 4), *range(26, 8, -4)))
BEND: Final = 0.16  # of a way's length, to its left: ways back do not meet it


def _place(state: State) -> tuple[float, float]:
    return PLACES[state]


def _node(state: State) -> Box:
    x, y = _place(state)
    return Box(x - NODE.width / 2, y - NODE.height / 2, NODE.width, NODE.height)


def _border(state: State, towards: tuple[float, float]) -> tuple[float, float]:
    """Where the way from that node's middle to a point leaves its box."""
    x, y = _place(state)
    dx, dy = towards[0] - x, towards[1] - y
    share = min(
        (NODE.width / 2 + 2) / abs(dx) if dx else 1e9,
        (NODE.height / 2 + 2) / abs(dy) if dy else 1e9,
    )
    return (x + dx * share, y + dy * share)


def _bend(start: State, end: State) -> tuple[float, float]:
    """The middle of a curve to the left of the straight way, so that ways back do not meet it."""
    (x1, y1), (x2, y2) = _place(start), _place(end)
    return ((x1 + x2) / 2 + (y2 - y1) * BEND, (y1 + y2) / 2 - (x2 - x1) * BEND)


def draw_backend(backend: Backend) -> Picture:
    """States that it is never at are there too, dimmed."""
    found = list(edges(backend))
    said = "; ".join(
        f"from {state_name(own)} to {state_name(end)} when the frontend is at "
        + ", ".join(str(int(one)) for one in seen)
        for own, end, seen in found
    )
    picture = Picture(
        *SIZE, f"{backend.name}: states",
        f"Arrows carry the states of the frontend: {said}.",
    )  # fmt: skip
    used = {one for own, end, _ in found for one in (own, end)}
    for own, end, _seen in found:
        bend = _bend(own, end)
        picture.arrow(
            [_border(own, bend), bend, _border(end, bend)],
            "back",
        )
    for state in STATES:
        box = _node(state)
        kind = "back" if state in used else "ghost"
        picture.box(box, kind, radius=5)
        picture.label(box, state_name(state), *([] if state in used else ["dim"]))
    for own, end, seen in found:
        _label(picture, own, end, ",".join(str(int(one)) for one in seen))
    return picture


def _label(picture: Picture, own: State, end: State, text: str) -> None:
    """On the curve, as near to its beginning as there is room."""
    bend = _bend(own, end)
    start, stop = _border(own, bend), _border(end, bend)
    for share in SHARES:
        rest = 1 - share
        x = rest * rest * start[0] + 2 * rest * share * bend[0] + share * share * stop[0]
        y = rest * rest * start[1] + 2 * rest * share * bend[1] + share * share * stop[1]
        box = text_box(x, y, text, FONT_MIN, "middle")
        free = not any(box.overlaps(other) for other, _ in picture.texts)
        if free and not any(box.overlaps(_node(state)) for state in STATES):
            picture.text(x, y, text, "halo", size=FONT_MIN)
            return
    raise PictureError(f"{picture.title}: no room for {text!r}")
