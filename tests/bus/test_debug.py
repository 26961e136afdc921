"""DEBUG v1: every operation in every situation, the order of callbacks, what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.bus.debug import DebugCallback, DebugInterface
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.log import Log
from xenpv.bus.ntstatus import NtStatusError
from xenpv.bus.registry import Registry
from xenpv.errors import HypercallError, LocalProtocolError

GUID = "0DF600AE-6B20-4227-BF94-03DA9A26A114"


class Rig:
    def __init__(self, world: World) -> None:
        self.got: list[bytes] = []
        self.log = Log(world.guest, Registry(), qemu=self.got.append)
        self.debug = DebugInterface(self.log)
        self.version = query_interface([self.debug], GUID, 1, 32 + 6 * 8)
        self.version.acquire()

    @property
    def text(self) -> str:
        return b"".join(self.got).decode()

    def prints(self, text: str) -> Callable[[bool], None]:
        def callback(crashing: bool) -> None:
            self.version.printf(f"{text} {crashing}\n")

        return callback


@pytest.fixture
def rig() -> Iterator[Rig]:
    world = make()
    yield Rig(world)
    world.hypervisor.close()


def test_a_line_has_the_prefix_and_goes_to_the_log_at_info(rig: Rig) -> None:
    handle = rig.version.register("xenvif|FRONTEND", rig.prints("hello"))
    rig.version.trigger(handle)
    assert rig.text == "xenvif|FRONTEND: hello False\n"
    assert rig.got == [b"xenvif|FRONTEND: ", b"hello False\n"]  # as LogPrintf gets them
    assert rig.debug.text == rig.text


PREFIXES = [
    ("short", "x", "x"),
    ("31 characters", "x" * 31, "x" * 31),
    ("32 are cut to 31", "x" * 32, "x" * 31),
    ("nothing", "", ""),
]


@pytest.mark.parametrize(
    ("prefix", "shown"), [row[1:] for row in PREFIXES], ids=[row[0] for row in PREFIXES]
)
def test_a_prefix_has_31_characters(rig: Rig, prefix: str, shown: str) -> None:
    rig.version.register(prefix, rig.prints("a"))
    rig.version.trigger()
    assert rig.text == f"{shown}: a False\n"


def test_all_run_in_the_order_of_registration_and_one_runs_alone(rig: Rig) -> None:
    handles = [rig.version.register(name, rig.prints(name)) for name in "cab"]
    rig.version.trigger()
    assert rig.debug.last == ["c: c False", "a: a False", "b: b False"]
    rig.version.trigger(handles[1])
    assert rig.debug.last == ["a: a False"]
    rig.version.deregister(handles[0])
    rig.version.register("c", rig.prints("new"))
    rig.version.trigger()
    assert rig.debug.last == ["a: a False", "b: b False", "c: new False"]


def test_without_callbacks_a_trigger_prints_nothing(rig: Rig) -> None:
    rig.version.trigger()
    assert (rig.text, rig.debug.last, rig.debug.triggers) == ("", [], 1)


def test_in_a_crash_each_is_told_so(rig: Rig) -> None:
    rig.version.register("a", rig.prints("a"))
    rig.debug.trigger_crashing()
    assert rig.text == "a: a True\n"


# What is refused, and how: operation, error

REFUSED = [
    ("printf outside a callback", lambda v, h: v.printf("x"), "DEBUG printf: no callback runs"),
    (
        "deregister twice",
        lambda v, h: (v.deregister(h), v.deregister(h)),
        "DEBUG: 'p' is not registered",
    ),
    (
        "trigger of one that is gone",
        lambda v, h: (v.deregister(h), v.trigger(h)),
        "DEBUG: 'p' is not registered",
    ),
    (
        "deregister of another's",
        lambda v, h: v.deregister(DebugCallback("q", print, "")),
        "DEBUG: 'q' is not registered",
    ),
]


@pytest.mark.parametrize(
    ("act", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_misuse_is_a_local_error(
    rig: Rig, act: Callable[[InterfaceVersion, object], object], message: str
) -> None:
    handle = rig.version.register("p", lambda crashing: None)
    with pytest.raises(LocalProtocolError, match=f"^{message}$"):
        act(rig.version, handle)


INSIDE = [
    ("register", lambda v, h: v.register("q", print)),
    ("deregister", lambda v, h: v.deregister(h)),
    ("trigger", lambda v, h: v.trigger()),
]


@pytest.mark.parametrize(("name", "act"), INSIDE, ids=[row[0] for row in INSIDE])
def test_a_callback_holds_the_list_s_lock(
    rig: Rig, name: str, act: Callable[[InterfaceVersion, object], object]
) -> None:
    """In the driver it would wait for itself for ever."""
    refused: list[str] = []

    def callback(crashing: bool) -> None:
        try:
            act(rig.version, handle)
        except LocalProtocolError as error:
            refused.append(str(error))

    handle = rig.version.register("p", callback)
    rig.version.trigger()
    assert refused == [f"DEBUG {name}: the callback of 'p' runs"]
    assert rig.debug.callbacks == [handle]


def test_before_acquire_and_after_release_nothing_works(rig: Rig) -> None:
    other = query_interface([rig.debug], GUID.lower(), 1)
    with pytest.raises(LocalProtocolError, match="DEBUG register: it is not acquired"):
        other.register("p", print)
    rig.version.release()
    with pytest.raises(LocalProtocolError, match="DEBUG trigger: it is not acquired"):
        rig.version.trigger()


@pytest.mark.parametrize(
    ("version", "size", "status"),
    [(0, None, "NOT_SUPPORTED"), (2, None, "NOT_SUPPORTED"), (1, 79, "BUFFER_OVERFLOW")],
)
def test_versions_and_sizes(rig: Rig, version: int, size: int | None, status: str) -> None:
    with pytest.raises(NtStatusError, match=status):
        query_interface([rig.debug], GUID, version, size)


def test_what_is_left_is_told_at_the_last_release_and_forgotten(rig: Rig) -> None:
    rig.debug.register("xenvif|FRONTEND", print, owner="XENVIF")
    rig.debug.register("mine", print)
    with pytest.raises(
        LocalProtocolError,
        match="^DEBUG is released with debug callback of XENVIF, debug callback of mine$",
    ):
        rig.version.release()
    assert rig.debug.callbacks == []


def test_an_error_of_a_callback_is_reported_in_its_place(rig: Rig) -> None:
    def fails(crashing: bool) -> None:
        rig.version.printf("before")
        raise HypercallError(22, "no such port")

    rig.version.register("bad", fails)
    rig.version.register("good", rig.prints("g"))
    rig.version.trigger()
    assert rig.debug.last == [
        "bad: before",
        "bad: the dump ends here: EINVAL: no such port",
        "good: g False",
    ]


def test_a_mistake_in_a_callback_is_its_author_s_to_see(rig: Rig) -> None:
    rig.version.register("bad", lambda crashing: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        rig.version.trigger()
    rig.debug.callbacks.clear()
    rig.version.register("good", rig.prints("g"))  # the lock is free again
    rig.version.trigger()
    assert rig.debug.last == ["good: g False"]


def test_dbgprint_inside_a_callback_comes_after_the_dump(rig: Rig) -> None:
    """HIGH_LEVEL: it is deferred."""

    def callback(crashing: bool) -> None:
        rig.log.dbg_print("xen deferred\n")
        rig.version.printf("line")

    rig.version.register("a", callback)
    rig.version.trigger()
    assert rig.text == "a: line\nxen deferred\n"


def test_a_dump_has_a_limit(rig: Rig) -> None:
    def floods(crashing: bool) -> None:
        for _ in range(20_000):
            rig.version.printf("x")

    rig.version.register("a", floods)
    rig.version.trigger()
    assert len(rig.debug.last) == 10_000


def test_what_cannot_be_printed_makes_no_line_of_its_own(rig: Rig) -> None:
    """A backend's path is what its writer says."""
    forged = "backend a\nxen|BUGCHECK: \x1b[2J\r\n"
    rig.version.register("a", lambda crashing: rig.version.printf(forged))
    rig.version.trigger()
    assert rig.text == "a: backend a?xen|BUGCHECK: ?[2J?\n"


def test_a_long_text_is_cut_to_a_line(rig: Rig) -> None:
    rig.version.register("a", lambda crashing: rig.version.printf("x" * 400 + "\n"))
    rig.version.trigger()
    assert rig.debug.last == ["a: " + "x" * 255]
    assert rig.got == [b"a: ", b"x" * 255 + b"\n"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["register", "deregister", "trigger"]), st.integers(0, 20)),
        max_size=40,
    )
)
def test_random_use_runs_who_is_registered_and_leaves_nobody(steps: list[tuple[str, int]]) -> None:
    world = make()
    rig = Rig(world)
    held: list[tuple[int, object]] = []
    for number, (step, pick) in enumerate(steps):
        if step == "register":
            held.append((number, rig.version.register(f"p{number}", rig.prints(str(number)))))
        elif step == "deregister" and held:
            rig.version.deregister(held.pop(pick % len(held))[1])
        elif step == "trigger":
            rig.version.trigger()
            assert rig.debug.last == [f"p{one}: {one} False" for one, _ in held]
    for _, handle in held:
        rig.version.deregister(handle)
    rig.version.release()  # raises if anything is left
    world.hypervisor.close()
