"""State tables on the pages: against the drivers' sources as literals, and against drivers that run."""

from __future__ import annotations

import pytest
from protocol import charts, states, traces
from protocol.texts import UnknownError

from xenpv.abi.xenbus import XenbusState as State
from xenpv.host.image import MemoryImage
from xenpv.platform import Platform
from xenpv.testing.raw_world import RawWorld

WAIT, DONE, FAIL, EJECT = "wait", "done", "fail", "eject"
REOPEN = "online: write 1, else eject"
SEEN = ("absent", "0", "1", "2", "3", "4", "5", "6", "7", "8")
# By frontend and goal: what it does at each state of SEEN; a digit is a state that it writes.
FRONTENDS = {
    # win-xenvif frontend.c
    ("vif-frontend", "prepare"): (EJECT, EJECT, WAIT, DONE, WAIT, 5, 6, REOPEN, WAIT, WAIT),
    ("vif-frontend", "connect"): (EJECT, EJECT, WAIT, 4, 4, DONE, 6, WAIT, WAIT, WAIT),
    ("vif-frontend", "close"): (EJECT, EJECT, WAIT, 5, WAIT, 5, 6, DONE, WAIT, WAIT),
    # xen-netfront.c, netback_changed
    ("vif-frontend-linux", "prepare"): (WAIT, WAIT, WAIT, DONE, WAIT, WAIT, WAIT, WAIT, WAIT, WAIT),
    ("vif-frontend-linux", "connect"): (FAIL, FAIL, WAIT, 4, WAIT, DONE, 6, FAIL, WAIT, WAIT),
    ("vif-frontend-linux", "close"): (FAIL, FAIL, 5, 5, 5, 5, 6, DONE, WAIT, WAIT),
    # win-xenvbd frontend.c
    ("vbd-frontend", "prepare"): (FAIL, FAIL, WAIT, DONE, FAIL, FAIL, FAIL, WAIT, FAIL, FAIL),
    ("vbd-frontend", "connect"): (FAIL, FAIL, WAIT, WAIT, WAIT, DONE, FAIL, FAIL, FAIL, FAIL),
    ("vbd-frontend", "close"): (FAIL, 5, WAIT, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-frontend", "close, once it wrote 5"): (FAIL, 5, 5, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-frontend", "close, once it wrote 6"): (FAIL, 6, 6, 6, 6, 6, 6, DONE, 6, 6),
    # xen-blkfront.c, blkback_changed; xenbus_reset_state
    ("vbd-frontend-linux", "prepare"): (WAIT, WAIT, WAIT, DONE, WAIT, 5, 6, 1, WAIT, WAIT),
    ("vbd-frontend-linux", "connect"): (FAIL, FAIL, WAIT, WAIT, WAIT, DONE, FAIL, FAIL, FAIL, FAIL),
    ("vbd-frontend-linux", "close"): (FAIL, FAIL, WAIT, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-frontend-linux", "close, once it wrote 5"): (FAIL, FAIL, 5, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-frontend-linux", "close, once it wrote 6"): (FAIL, 6, 6, 6, 6, 6, 6, DONE, 6, 6),
    # xencrsh frontend.c
    ("vbd-crash", "close"): (FAIL, 5, WAIT, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-crash", "close, once it wrote 5"): (FAIL, 5, 5, 5, 5, 5, 6, DONE, 5, 5),
    ("vbd-crash", "close, once it wrote 6"): (FAIL, 6, 6, 6, 6, 6, 6, DONE, 6, 6),
    ("vbd-crash", "prepare"): (FAIL, FAIL, WAIT, DONE, FAIL, FAIL, FAIL, WAIT, FAIL, FAIL),
    ("vbd-crash", "connect"): (FAIL, FAIL, WAIT, WAIT, WAIT, DONE, FAIL, FAIL, FAIL, FAIL),
}  # fmt: skip
START = {
    "vif-frontend": "prepare close prepare connect",
    "vif-frontend-linux": "prepare connect",
    "vbd-frontend": "close prepare connect",
    "vbd-frontend-linux": "prepare connect",
    "vbd-crash": "close prepare connect",
}


@pytest.mark.parametrize("name", states.FRONTENDS)
def test_a_frontend_does_what_its_source_does(name):
    table = states.frontend_table(states.FRONTENDS[name]())
    assert [one.split()[0] for one in table.column("backend")] == list(SEEN)
    goals = [goal for frontend, goal in FRONTENDS if frontend == name]
    assert sorted(table.columns[1:]) == sorted(goals)
    for goal in goals:
        wanted = [f"write {one}" if isinstance(one, int) else one for one in FRONTENDS[name, goal]]
        assert table.column(goal) == wanted, goal


def test_frontends_walk_as_their_sources_do():
    assert {
        name: " ".join(goal.value for goal in goals) for name, goals in states.START.items()
    } == START


# (own state, the frontend's): where it ends; from the sources named on the page.
NETBACK_LINUX = {
    (1, 1): "→ 2", (1, 4): "→ 2 → 4", (1, 5): "→ 2 → 5",
    (2, 4): "→ 4", (2, 5): "→ 5",
    (4, 1): "→ 5 → 6 → 2", (4, 5): "→ 5",
    (5, 1): "→ 6 → 2", (5, 4): "→ 6 → 2 → 4",
    (6, 1): "→ 2", (6, 4): "→ 2 → 4", (6, 5): "→ 5",
    **{(own, 0): text for own, text in ((1, "→ 6"), (2, "→ 5 → 6"), (4, "→ 5 → 6"), (5, "→ 6"), (6, ""))},
    **{(own, 6): text for own, text in ((1, "→ 6"), (2, "→ 5 → 6"), (4, "→ 5 → 6"), (5, "→ 6"), (6, ""))},
    **{(own, seen): "→ 5; broken" for own in (1, 2, 4, 5, 6) for seen in (2, 8)},
    **{(own, 7): "→ 8; reads `xdp-headroom`" for own in (1, 2, 4, 5, 6)},
}  # fmt: skip
BLKBACK_LINUX = {
    (6, 1): "→ 2",
    **{(own, seen): "→ 4" for own in (1, 2, 5, 6) for seen in (3, 4)},
    **{(own, 5): "→ 5" for own in (1, 2, 4, 5, 6)},
    **{(own, seen): "→ 5; broken" for own in (1, 2, 4, 5, 6) for seen in (2, 7, 8)},
    **{(own, 0): "→ 6" if own == 5 else "" for own in (1, 2, 4, 5, 6)},
    **{(own, 6): "→ 6" for own in (1, 2, 4, 5, 6)},
}  # fmt: skip
ENDS = {
    "; unregistered if offline",
    "; unregistered",
    "unregistered if offline",
    "unregistered",
    "",
}


@pytest.mark.parametrize(
    ("name", "wanted"), [("netback-linux", NETBACK_LINUX), ("blkback-linux", BLKBACK_LINUX)]
)
def test_linux_backends_do_what_their_sources_do(name, wanted):
    moves = states.backends()[name].moves
    assert {(int(own), int(seen)) for own, seen in moves} == set(wanted)
    for (own, seen), move in moves.items():
        text = wanted[int(own), int(seen)]
        assert move.text.startswith(text), (own, seen)
        assert move.text[len(text) :] in ENDS, (own, seen)


# the same tables, against backends that run


def _world(name):
    kind, profile = name.split("-")
    netback = profile if kind == "netback" else "linux"
    blkback = profile if kind == "blkback" else "linux"
    platform = Platform(seed=1, netback=netback, blkback=blkback)
    world = RawWorld(platform, MemoryImage(bytearray(1 << 16)), "xenbr0")
    return world, world.vif if kind == "netback" else world.vbd


def _bring_to(world, front, own):
    """A backend that is at `own`, by a frontend's honest ways; its keys are there."""
    world.run()
    front.attach()
    keys = front.keys()
    ready = keys.pop("state")
    for key, value in keys.items():
        front.write_key(key, value)
    closes = (5,) if front.platform.netback.name == "mirage" and front.kind == "vif" else (5, 6)
    for state in {2: (), 4: (ready,), 5: (5,), 6: closes}[own]:
        front.state = int(state)
        world.run()


RUNS = [
    (name, own, seen)
    for name, backend in states.backends().items()
    for own in backend.own if own is not State.INITIALISING
    for seen in State
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "own", "seen"), RUNS, ids=lambda one: str(int(one)) if isinstance(one, State) else one
)
def test_a_running_backend_does_what_its_table_says(name, own, seen):
    world, front = _world(name)
    with world:
        _bring_to(world, front, int(own))
        assert front.backend_state is own
        move = states.backends()[name].moves.get((own, seen), states.Move())
        if seen is State.UNKNOWN:
            front.remove_key("state")
        else:
            front.state = seen
        world.run()
        device = front.backend
        if move.end.startswith("removes its directory"):
            assert front.backend_key("state") is None
            return
        assert front.backend_state is (move.path[-1] if move.path else own)
        if move.end == "broken":
            assert device.broken
        else:
            assert not device.broken, device.broken


def test_the_states_are_the_headers():
    table = states.meanings()
    assert list(zip(table.column("value"), table.column("name"), strict=True)) == [
        ("0", "`XenbusStateUnknown`"), ("1", "`XenbusStateInitialising`"), ("2", "`XenbusStateInitWait`"),
        ("3", "`XenbusStateInitialised`"), ("4", "`XenbusStateConnected`"), ("5", "`XenbusStateClosing`"),
        ("6", "`XenbusStateClosed`"), ("7", "`XenbusStateReconfiguring`"), ("8", "`XenbusStateReconfigured`"),
    ]  # fmt: skip


# handshakes: (device, frontend, backend): states in the order of their writing, f the frontend's

HANDSHAKES = {
    ("vif", "windows", "linux"): "b2 f5 b5 f6 b6 f1 b2 f4 b4",
    ("vif", "windows", "qemu"): "b2 f5 b5 f6 b6 f1 b2 f4 b4",
    ("vif", "windows", "mirage"): "b2 f5 b6 f1 b2 f4 b4",
    ("vif", "linux", "linux"): "b2 f1 f4 b4",
    ("vif", "linux", "qemu"): "b2 f1 f4 b4",
    ("vif", "linux", "mirage"): "b2 f1 f4 b4",
    ("vbd", "windows", "linux"): "b2 f5 b5 f6 b6 f1 b2 f3 b4 f4",
    ("vbd", "windows", "qemu"): "b2 f5 b5 f6 b6 f1 b2 f3 b4 f4",
    ("vbd", "windows", "tapdisk"): "b2 f5 b5 f6 b6 f1 b2 f3 b4 f4",
    ("vbd", "windows", "mirage"): "b2 f5 b5 f6 b6 f1 b2 f3 b4 f4",
    ("vbd", "linux", "linux"): "b2 f3 b4 f4",
    ("vbd", "linux", "qemu"): "b2 f3 b4 f4",
    ("vbd", "linux", "tapdisk"): "b2 f3 b4 f4",
    ("vbd", "linux", "mirage"): "b2 f3 b4 f4",
}


@pytest.mark.parametrize("which", HANDSHAKES, ids="-".join)
def test_a_handshake_goes_as_its_sources_say(which):
    run = traces.run(*which)
    assert run.connected
    written = [
        f"{one.who[0]}{int(one.state)}" for one in charts.events(run) if one.state is not None
    ]
    assert " ".join(written) == HANDSHAKES[which]


def test_names_that_there_are_not_are_refused():
    with pytest.raises(
        UnknownError, match="unknown state table 'netback-bsd': expected one of vif-frontend"
    ):
        states.check("netback-bsd")
    for which, message in (
        (("vscsi", "linux", "linux"), "unknown device 'vscsi'"),
        (("vif", "bsd", "linux"), "unknown frontend 'bsd'"),
        (
            ("vif", "linux", "tapdisk"),
            "unknown backend 'tapdisk': expected one of linux, qemu, mirage",
        ),
    ):
        with pytest.raises(UnknownError, match=message):
            traces.run(*which)
