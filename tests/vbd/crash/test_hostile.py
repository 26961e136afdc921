"""A dump to a backend that does anything at any moment: it ends, in time, and nothing raises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd import rawback
from tests.vbd.crash.dumps import load
from tests.vbd.rawback import RawBack, Slot
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import XenpvError
from xenpv.vbd.crash import stack as crash_stack
from xenpv.vbd.crash.stack import DumpStack, Stage

S = 1_000_000_000
SHORT = 66
# Two walks to Closed, one to InitWait, one to Connected, and one more to Closed; then every
# answer in its 60 s, of which each of the dump's seven SRBs may wait for two.
LONGEST_NS = (5 * 31 + 7 * 120) * S
KEYS = ("sectors", "sector-size", "info", "feature-barrier", "feature-flush-cache", "state")
TEXTS = ("", "0", "1", "-1", "junk", "4096", "1024", "9" * 30, "513", "4", "6")


@pytest.fixture(autouse=True)
def _short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_stack, "memory_runs", lambda _domain: [(0x100, SHORT)])


@attrs.frozen
class Act:
    """One thing that the backend does; the numbers are for whatever it is."""

    kind: int
    a: int
    b: int


ACTS = st.builds(Act, st.integers(0, 8), st.integers(0, 1 << 33), st.integers(0, 255))


def act(back: RawBack, one: Act, slots: list[Slot]) -> None:
    if one.kind == 0:
        back.device.switch_state(State(one.b % 9))
    elif one.kind == 1:
        back.device.write(KEYS[one.a % len(KEYS)], TEXTS[one.b % len(TEXTS)])
    elif one.kind == 2 and back.rings:
        back.store(8, one.a)
    elif one.kind == 3 and back.rings and slots:
        back.answer((slots[one.a % len(slots)].id, one.b % 4 - 2))
    elif one.kind == 4 and back.rings and slots:
        back.answer((one.a, 0))
    elif one.kind == 5 and back.ports:
        for _ in range(one.b):
            back.domain.evtchn.send(back.ports[0])
    elif one.kind == 6:
        back.disconnect()
    elif one.kind == 7:
        back.answers[State(one.a % 9)] = State(one.b % 9)
    elif one.kind == 8 and slots and slots[-1].segments:
        back.map(slots[-1].segments[0][0], readonly=True)


def serve(back: RawBack, acts: list[Act], stack: DumpStack, run: Callable[[int], object]) -> None:
    """The acts, one in each 50 ms, between which the backend answers what it took."""
    slots: list[Slot] = []
    for one in acts:
        if stack.is_over:
            return
        run(50_000_000)
        with suppress(XenpvError):  # it is the test's own that fails
            slots += back.taken() if back.rings else []
            act(back, one, slots)


@settings(max_examples=60)
@given(st.lists(ACTS, max_size=40), st.integers(0, 3))
def test_a_dump_ends_whatever_the_backend_does(acts: list[Act], later: int) -> None:
    with rawback.scene() as scene:
        bus, loop = scene.guest.bus, scene.xen.loop
        assert bus is not None
        bus.store.write("data/scsi/target/0/dump", "1")
        stack = load(scene.guest)
        bus.crash.bugcheck(0xE2)
        before = loop.now
        back = scene.back
        serve(back, acts, stack, loop.advance)
        while not stack.is_over and loop.now - before < 2 * LONGEST_NS:
            loop.advance(50_000_000 if later else 5 * S)
            if later and back.rings:
                # From now on it is an honest one, or one that says no.
                with suppress(XenpvError):
                    status = 0 if later > 1 else -1
                    back.answer(*[(slot.id, status) for slot in back.taken()])
        assert stack.is_over
        assert loop.now - before < LONGEST_NS + len(acts) * 50_000_000
        assert scene.domain.is_shutdown
        assert scene.domain.shutdown_code == 3
        assert bool(stack.failure) is (stack.stage is Stage.FAILED)
        # A page that the backend may still write to is nobody else's.
        references = stack.driver.references
        assert len(set(references.free)) == len(references.free)
        assert not set(references.free) & set(references.held)
