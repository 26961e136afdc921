"""What each block backend writes as its frontend goes from state to state."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.back.blkprofiles import NAMES, held, renew, scene, states
from tests.vbd.rawfront import DEVID, FRONT, OKAY, READ, RawFront
from xenpv.host.image import MemoryImage

# From (the frontend's states that lead there), the next state, what is written. It is at InitWait.
LINUX = [
    ([], 1, []),
    ([], 3, ["connected"]),
    ([], 4, ["connected"]),
    ([], 5, ["closing"]),
    ([], 6, ["closed"]),
    ([], 2, ["closing"]),  # saw state 2 at frontend
    ([], 7, ["closing"]),
    ([], 8, ["closing"]),
    ([3], 1, []),
    ([3], 3, []),
    ([3], 4, []),
    ([3], 5, ["closing"]),
    ([3], 6, ["closed"]),
    ([3], 2, ["closing"]),
    ([3, 5], 1, []),
    ([3, 5], 3, ["connected"]),
    ([3, 5], 6, ["closed"]),
    ([3, 6], 1, ["init_wait"]),
    ([3, 6], 3, ["connected"]),
    ([3, 6], 5, ["closing"]),
    ([3, 6, 1], 4, ["connected"]),
    ([6], 6, []),
]
QEMU = [
    ([], 1, []),
    ([], 3, ["connected"]),
    ([], 4, ["connected"]),
    ([], 5, ["closing"]),
    ([], 6, ["closed"]),
    ([], 2, []),
    ([], 7, []),
    ([], 8, []),
    ([], 0, ["closed"]),
    ([3], 1, []),
    ([3], 4, []),
    ([3], 5, ["closing"]),
    ([3], 6, ["closed"]),
    ([3], 0, ["closed"]),
    ([3, 5], 1, []),
    ([3, 5], 3, ["connected"]),
    ([3, 5], 6, ["closed"]),
    ([3, 0], 1, ["init_wait"]),
    ([3, 0], 3, ["connected"]),
    ([3, 6], 1, ["init_wait"]),
    ([3, 6], 3, ["connected"]),
    ([3, 6, 1], 4, ["connected"]),
]
TAPDISK = [
    ([], 1, []),
    ([], 3, ["connected"]),
    ([], 4, ["connected"]),
    ([], 5, ["closing"]),
    ([], 6, ["closed"]),
    ([], 2, []),
    ([], 7, []),
    ([], 0, []),
    ([3], 1, ["init_wait"]),
    ([3, 1], 3, ["connected"]),
    ([3], 4, []),
    ([3], 0, []),
    ([3], 5, ["closing"]),
    ([3], 6, ["closed"]),
    ([3, 5], 1, ["init_wait"]),
    ([3, 5], 6, ["closed"]),
    ([3, 6], 1, ["init_wait"]),
    ([3, 6, 1], 4, ["connected"]),
]
MIRAGE = [
    ([], 1, []),
    ([], 3, ["connected"]),
    ([], 4, ["connected"]),
    ([], 5, ["closing"]),
    ([], 6, ["closed"]),
    ([], 2, []),
    ([3], 4, []),
    ([3], 1, []),
    ([3], 5, ["closing"]),
    ([3], 6, ["closed"]),
    ([3, 5], 6, ["closed"]),
    ([3, 6], 1, ["init_wait"]),
    ([3, 6, 1], 4, ["connected"]),
]
ROWS = [
    *(("linux", *row) for row in LINUX),
    *(("qemu", *row) for row in QEMU),
    *(("tapdisk", *row) for row in TAPDISK),
    *(("mirage", *row) for row in MIRAGE),
]


def step(front: RawFront, state: int) -> None:
    front.write("state", state)
    if not front.driver.queues and not front.driver.leaving:
        renew(front)


@pytest.mark.parametrize(("profile", "lead", "to", "written"), ROWS)
def test_what_is_written(profile: str, lead: list[int], to: int, written: list[str]) -> None:
    with scene(profile) as front:
        keys_only(front)
        before = 0
        for state in [*lead, to]:
            before = len(states(front))
            step(front, state)
        assert states(front)[before:] == written
        assert bool(front.driver.queues) or front.state != 4
        assert front.driver.queues == [] or front.state in (4, 5)


def keys_only(front: RawFront) -> None:
    """The keys of a frontend that is not ready: connected once, and closed again."""
    front.connect()
    front.write("state", 6)
    renew(front)
    front.write("state", 1)
    assert front.state == 2


@pytest.mark.parametrize("profile", NAMES)
def test_a_new_device_is_at_init_wait_once_its_disk_is_there(profile: str) -> None:
    with scene(profile, plugged=False) as front:
        # tapback waits for its tapdisk; QEMU and mirage open their disk themselves.
        assert front.state == (1 if profile == "tapdisk" else 2)
        assert (front.driver.vbd is not None) == (profile in ("qemu", "mirage"))
        front.hotplug()
        assert front.state == 2
        assert front.driver.vbd is not None


# profile, who is first: what the frontend's readiness comes to before and after the script
HOTPLUG = [
    ("linux", 2, 4),
    ("tapdisk", 1, 4),
    ("qemu", 4, 4),
    ("mirage", 4, 4),
]


@pytest.mark.parametrize(("profile", "before", "after"), HOTPLUG)
def test_a_frontend_that_is_ready_before_the_script_is_done(
    profile: str, before: int, after: int
) -> None:
    with scene(profile, plugged=False) as front:
        front.connect()
        assert front.state == before
        ref = front.grant(front.page())
        early = front.send(front.request(READ, 5, [(ref, 0, 0)]))
        front.hotplug()
        assert front.state == after
        assert [status for _id, _op, status in [*early, *front.answers()]] == [OKAY]


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("status", ["", "busy", "error", "connected "])
def test_another_hotplug_status_is_none(profile: str, status: str) -> None:
    with scene(profile, plugged=False) as front:
        opened = front.driver.vbd is not None
        front.world.write(f"{front.back}/hotplug-status", status)
        front.world.loop.run()
        assert (front.driver.vbd is not None) == opened


class Closing(MemoryImage):
    """Counts how often it was given back."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


# profile, how it goes: whether the image is given back, what the state is; None: no directory
ENDS = [
    ("linux", "close", False, "6"),
    ("linux", "offline", True, "6"),
    ("linux", "vanish", True, "6"),
    ("linux", "remove", True, None),
    ("qemu", "close", False, "6"),
    ("qemu", "offline", True, "6"),
    ("qemu", "vanish", True, "6"),
    ("qemu", "remove", True, None),
    ("tapdisk", "close", False, "6"),
    ("tapdisk", "offline", False, "6"),
    ("tapdisk", "vanish", True, None),
    ("tapdisk", "remove", True, None),
    ("mirage", "close", False, "6"),
    ("mirage", "offline", True, "6"),
    ("mirage", "vanish", True, "6"),
    ("mirage", "remove", True, None),
]


@pytest.mark.parametrize(("profile", "how", "closes", "state"), ENDS)
@pytest.mark.parametrize("connected", [True, False])
def test_when_the_image_is_given_back(
    profile: str, how: str, closes: bool, state: str | None, connected: bool
) -> None:
    image = Closing(bytearray(4096))
    with scene(profile, image=image) as front:
        front.images.forget("image")  # what is released is not its owner's any more
        idle = held(front)
        if connected:
            front.connect()
        store, driver = front.device.store, front.driver
        if how != "close":
            store.write(f"{front.back}/online", "0")
            store.write(f"{front.back}/state", "5")
            front.world.loop.run()
        if how == "remove":
            store.remove(front.back)
        elif how == "vanish":
            store.remove(FRONT)
        else:
            front.write("state", 5)
            front.write("state", 6)
        front.world.loop.run()
        assert store.get(f"{front.back}/state") == state
        assert image.closed == closes
        assert driver.queues == driver.leaving == []
        assert held(front) == idle
        driver.remove()
        assert image.closed == 1


def test_qemu_closes_for_a_toolstack_where_no_frontend_is_active() -> None:
    with scene("qemu") as front:
        front.world.write(f"{front.back}/online", "0")
        front.world.write(f"{front.back}/state", "5")
        front.world.loop.run()
        assert front.state == 6
    with scene("qemu") as front:
        front.connect()
        front.world.write(f"{front.back}/state", "5")
        front.world.loop.run()
        assert front.state == 5
        assert len(front.driver.queues) == 1


@pytest.mark.parametrize("profile", NAMES)
def test_an_image_that_cannot_be_opened(profile: str) -> None:
    with scene(profile, params="/nonexistent/disk.img") as front:
        assert "does not exist" in front.key("error")
        assert "does not exist" in front.device.broken
        # Only Linux' goes to Closing; QEMU makes no device, and says so in its log.
        assert front.state == {"linux": 5, "qemu": 1, "tapdisk": 1, "mirage": 5}[profile]
        front.connect()
        assert front.driver.queues == [] or profile == "linux"
        # The toolstack names another.
        front.world.write(f"{front.back}/params", "image")
        front.world.loop.run()
        front.hotplug()
        assert front.driver.vbd is not None
        assert front.state == 4


@pytest.mark.parametrize("profile", NAMES)
def test_a_probe_without_its_keys_waits_for_them(profile: str) -> None:
    with scene(profile, plugged=False) as front:
        store = front.device.store
        texts = {key: front.key(key) for key in ("frontend", "frontend-id", "online")}
        store.remove(front.back)
        front.world.loop.run()
        for key, text in texts.items():
            front.world.write(f"{front.back}/{key}", text)
        front.world.write(f"{front.back}/state", "1")
        front.world.loop.run()
        front.hotplug()
        assert front.driver.vbd is None
        front.world.write(f"{front.back}/mode", "w")
        front.world.write(f"{front.back}/params", "image")
        front.world.loop.run()
        front.hotplug()
        assert front.driver.vbd is not None


STATE = st.sampled_from(["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "", "x", "-1", "4 "])
KEY = st.sampled_from(
    ["ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel", "protocol",
     "multi-queue-num-queues", "queue-0/ring-ref", "feature-persistent",
     "feature-large-sector-size", "state"]
)  # fmt: skip
VALUE = st.one_of(
    st.sampled_from(["", "0", "1", "-1", "0x10", "18446744073709551616", "x86_32-abi", "64",
                     "65", "99999999", "\x01", "4 ", "x86_64-abi"]),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8),
)  # fmt: skip
MOVE = st.one_of(
    st.tuples(st.just("state"), STATE),
    st.tuples(st.just("state"), STATE),
    st.tuples(KEY, VALUE),
    st.tuples(st.sampled_from(["read", "hotplug", "online", "offline", "close", "wait"]),
              st.just("")),
)  # fmt: skip


@pytest.mark.parametrize("profile", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    moves=st.lists(MOVE, min_size=1, max_size=14),
    latency_ns=st.sampled_from([0, 1_000_000]),
    at_once=st.booleans(),
)
def test_whatever_is_written_leaves_nothing_behind(
    profile: str, moves: list[tuple[str, str]], latency_ns: int, at_once: bool
) -> None:
    """States and texts in any order, with requests in flight: it never raises, what it holds goes
    with the directory, and a new device of that name serves."""
    with scene(profile, latency_ns=latency_ns) as front:
        world = front.world
        idle = held(front)
        front.connect()
        driver = front.driver
        for key, text in moves:
            move(front, key, text)
            if not at_once:
                world.loop.advance(0)
            if front.backends.device(front.kind, 1, DEVID) is not None:
                assert front.state in (1, 2, 4, 5, 6)
        front.backends.store.remove(front.back)
        world.loop.run()
        assert driver.queues == driver.leaving == []
        assert driver.vbd is None
        assert held(front) == idle


def move(front: RawFront, key: str, text: str) -> None:
    world = front.world
    if key == "read":
        assert front.ring is not None
        if front.ring.free:
            ref = front.grant(front.page())
            front.ring.push(front.request(READ, 5, [(ref, 0, 7)]), 1)
            world.guest.evtchn.send(front.port)
    elif key in ("online", "offline"):
        world.write(f"{front.back}/online", str(int(key == "online")))
    elif key == "close":
        world.write(f"{front.back}/state", "5")
    elif key == "hotplug":
        world.write(f"{front.back}/hotplug-status", "connected")
    elif key == "wait":
        world.loop.advance(1_000_000)
    else:
        world.write(f"{FRONT}/{key}", text)
