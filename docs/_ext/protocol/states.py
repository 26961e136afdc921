"""State tables of both ends, read from the drivers' own: what each does at each state it sees.

A frontend's table has a goal per column, since what it writes depends on where it is going; a
backend's has a state of the frontend per column and its own state per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import blkprofile, netprofile
from xenpv.bus.handshake import ABSENT, Do, Goal, Seen, Step
from xenpv.bus.handshake import Table as Rows
from xenpv.vbd import personality
from xenpv.vbd.crash import walk as crash
from xenpv.vif import states as vif

from .table import Table
from .texts import UnknownError

STATES: Final = tuple(State)
SEEN: Final[tuple[Seen, ...]] = (ABSENT, *STATES)
WORDS: Final[Mapping[Do, str]] = {
    Do.WAIT: "wait",
    Do.DONE: "done",
    Do.FAIL: "fail",
    Do.REOPEN: "online: write 1, else eject",
    Do.OFFLINE: "eject",
}
CAMEL: Final = {
    State.UNKNOWN: "Unknown", State.INITIALISING: "Initialising", State.INIT_WAIT: "InitWait",
    State.INITIALISED: "Initialised", State.CONNECTED: "Connected", State.CLOSING: "Closing",
    State.CLOSED: "Closed", State.RECONFIGURING: "Reconfiguring",
    State.RECONFIGURED: "Reconfigured",
}  # fmt: skip


def state_name(state: Seen) -> str:
    """`2 InitWait`, as Xen calls it."""
    return "absent" if not isinstance(state, State) else f"{int(state)} {CAMEL[state]}"


def step_text(step: object) -> str:
    if isinstance(step, State):
        return f"write {int(step)}"
    return WORDS[step] if isinstance(step, Do) else str(getattr(step, "value", step))


# frontends


@attrs.frozen
class Frontend:
    """`columns`: what it does at each state of the backend, by goal and what it wrote last."""

    name: str
    columns: tuple[tuple[str, Mapping[Seen, str]], ...]


def _frontend(name: str, rows: Rows) -> Frontend:
    columns = []
    for key in rows:
        goal, wrote = key if isinstance(key, tuple) else (key, None)
        title = goal.value if wrote is None else f"{goal.value}, once it wrote {int(wrote)}"
        base: Mapping[Seen, Step] = rows[goal]
        over = rows[key] if wrote is not None else {}
        told = {seen: step_text(over.get(seen, base.get(seen, Do.WAIT))) for seen in SEEN}
        columns.append((title, told))
    order = [Goal.PREPARE.value, Goal.CONNECT.value, Goal.CLOSE.value]
    columns.sort(key=lambda one: (order.index(one[0].split(",")[0]), one[0]))
    return Frontend(name, tuple(columns))


def _crash() -> Frontend:
    """The crash driver's table names what it does at all other states."""
    columns = []
    for (goal, wrote), (rows, otherwise) in crash.TABLE.items():
        title = goal.value if wrote is None else f"{goal.value}, once it wrote {int(wrote)}"
        told: dict[Seen, str] = {ABSENT: "fail"}
        told |= {seen: step_text(rows.get(seen, otherwise)) for seen in STATES}
        columns.append((title, told))
    return Frontend("vbd-crash", tuple(columns))


FRONTENDS: Final[Mapping[str, Callable[[], Frontend]]] = {
    "vif-frontend": lambda: _frontend("vif-frontend", vif.TABLES["windows"]),
    "vif-frontend-linux": lambda: _frontend("vif-frontend-linux", vif.TABLES["linux"]),
    "vbd-frontend": lambda: _frontend("vbd-frontend", personality.WINDOWS.table),
    "vbd-frontend-linux": lambda: _frontend("vbd-frontend-linux", personality.LINUX.table),
    "vbd-crash": _crash,
}
START: Final = {
    "vif-frontend": vif.START["windows"],
    "vif-frontend-linux": vif.START["linux"],
    "vbd-frontend": personality.WINDOWS.start,
    "vbd-frontend-linux": personality.LINUX.start,
    "vbd-crash": (crash.Goal.CLOSE, crash.Goal.PREPARE, crash.Goal.CONNECT),
}


def frontend_table(frontend: Frontend) -> Table:
    titles = tuple(title for title, _ in frontend.columns)
    rows = [(state_name(seen), *(column[seen] for _, column in frontend.columns)) for seen in SEEN]
    return Table(("backend", *titles), tuple(rows))


# backends


@attrs.frozen
class Move:
    """`path`: states that the backend passes through; `end`: what else becomes of it."""

    path: tuple[State, ...] = ()
    end: str = ""

    @property
    def text(self) -> str:
        steps = " ".join(f"→ {int(one)}" for one in self.path)
        return f"{steps}; {self.end}" if steps and self.end else steps or self.end


@attrs.frozen
class Backend:
    """`moves`: by own state and the frontend's; what is absent asks nothing."""

    name: str
    own: tuple[State, ...]
    moves: Mapping[tuple[State, State], Move]


GONE: Final = "unregistered"


def _netback(profile: netprofile.Profile) -> Backend:
    own: tuple[State, ...] = blkprofile.OWN
    if not profile.waits_first:
        own = own[1:]  # it is at InitWait before it looks at its frontend
    if not any(State.CLOSING in path for path in profile.walk.values()):
        own = tuple(one for one in own if one is not State.CLOSING)
    moves = {}
    for one in own:
        for seen in STATES:
            move = _net_move(profile, one, seen)
            if move.text:
                moves[one, seen] = move
    return Backend(f"netback-{profile.name}", own, moves)


def _net_move(profile: netprofile.Profile, own: State, seen: State) -> Move:
    if seen in profile.fatal_states:
        return Move((State.CLOSING,), "broken")
    if seen is State.RECONFIGURING and profile.headroom:
        return Move((State.RECONFIGURED,), "reads `xdp-headroom`")
    path = profile.walk.get((own, seen), ())
    goes = {State.UNKNOWN: GONE, State.CLOSED: f"{GONE} if offline"}.get(seen, "")
    if profile.deletes and own is State.CONNECTED and path[-1:] == (State.CLOSED,):
        goes = "removes its directory if online" + (f", else {GONE}" if goes else "")
    return Move(path, goes)


# What a step comes to in the store. CONNECT: once there is an image.
BLK_PATHS: Final[Mapping[blkprofile.Step, Move]] = {
    blkprofile.Step.WAIT: Move((State.INIT_WAIT,)),
    blkprofile.Step.CONNECT: Move((State.CONNECTED,)),
    blkprofile.Step.CLOSING: Move((State.CLOSING,)),
    blkprofile.Step.CLOSED: Move((State.CLOSED,)),
    blkprofile.Step.GONE: Move((), GONE),
    blkprofile.Step.DELETE: Move((), "removes its directory"),
    blkprofile.Step.FATAL: Move((State.CLOSING,), "broken"),
}


def _blk_move(profile: blkprofile.Profile, own: State, seen: State) -> Move | None:
    step = profile.walk.get((own, seen))
    if step is None:
        return None
    if step is blkprofile.Step.CLOSED and seen is State.CLOSED and profile.retires:
        return Move((State.CLOSED,), f"{GONE} if offline")
    if step is blkprofile.Step.GONE and own is State.CLOSING:
        return Move((State.CLOSED,), GONE)  # the toolstack waits for it
    return BLK_PATHS[step]


def _blkback(profile: blkprofile.Profile) -> Backend:
    moves = {}
    for own in blkprofile.OWN:
        for seen in STATES:
            move = _blk_move(profile, own, seen)
            if move is not None:
                moves[own, seen] = move
    return Backend(f"blkback-{profile.name}", blkprofile.OWN, moves)


@cache
def backends() -> dict[str, Backend]:
    nets = [netprofile.PROFILES[name] for name in ("linux", "qemu", "mirage")]
    found = [_netback(one) for one in nets]
    found += [_blkback(one) for one in blkprofile.PROFILES.values()]
    return {one.name: one for one in found}


def backend_table(backend: Backend) -> Table:
    """A row per state of the frontend that means anything, a column per state of its own."""
    seen = [one for one in STATES if any((own, one) in backend.moves for own in backend.own)]
    columns = ("frontend", *(f"at {state_name(own)}" for own in backend.own))
    rows = [(state_name(one), *(_cell(backend, own, one) for own in backend.own)) for one in seen]
    return Table(columns, tuple(rows))


def _cell(backend: Backend, own: State, seen: State) -> str:
    move = backend.moves.get((own, seen))
    return "" if move is None else move.text


def edges(backend: Backend) -> Iterator[tuple[State, State, tuple[State, ...]]]:
    """(from, to, states of the frontend that ask for it): where it ends, if that is elsewhere.

    Reconfigured is a way from Connected alone, though it answers 7 wherever it is.
    """
    found: dict[tuple[State, State], list[State]] = {}
    for (own, seen), move in backend.moves.items():
        if State.RECONFIGURED in move.path and own is not State.CONNECTED:
            continue
        if move.path and move.path[-1] is not own:
            found.setdefault((own, move.path[-1]), []).append(seen)
    for (own, end), asking in found.items():
        yield own, end, tuple(sorted(asking))


def names() -> list[str]:
    return [*FRONTENDS, *backends()]


def check(name: str) -> None:
    if name not in names():
        raise UnknownError("state table", name, names())


# the states themselves


def meanings() -> Table:
    """XenbusState: number, name, what it means at either end."""
    from .texts import of

    rows = [
        (
            str(int(state)), f"`XenbusState{CAMEL[state]}`",
            of("state", CAMEL[state])["front"], of("state", CAMEL[state])["back"],
        )
        for state in STATES
    ]  # fmt: skip
    return Table(("value", "name", "written by a frontend", "written by a backend"), tuple(rows))
