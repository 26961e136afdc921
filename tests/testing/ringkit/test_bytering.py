"""Byte rings: what goes in comes out, never more than there is room for, at any index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, domain
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.testing import explore
from xenpv.testing.ringkit import (
    ByteBack,
    ByteBackend,
    ByteFront,
    ByteFrontend,
    ByteRingProtocol,
    check_byte_ring,
    ring_world,
)
from xenpv.testing.ringkit.bytering import table
from xenpv.testing.ringkit.headers import NINEPFS, PVCALLS_DATA
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

U32 = 1 << 32
STARTS = (0, 1, 2047, 0x7FFFFFFF, U32 - 1, U32 - 2048, U32 - 4096)
# one operation: who, and how many bytes it writes or reads
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("front writes", "back reads", "back writes", "front reads")),
              st.integers(0, 5000)),
    max_size=30,
)  # fmt: skip


@contextmanager
def pair(
    order: int, start: int, protocol: ByteRingProtocol
) -> Iterator[tuple[ByteFront, ByteBack]]:
    """Both ends in one domain, over the same pages; data pages are not adjacent."""
    hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    try:
        guest = domain(hypervisor)
        interface = guest.pages.alloc()
        pages = [guest.pages.alloc() for _ in range(1 << order)][::-1]
        refs = [100 + at for at in range(1 << order)]
        front = ByteFront(protocol, guest, interface, pages, refs, start=start)
        back = ByteBack(protocol, guest, interface, lambda ref: pages[ref - 100])
        yield front, back
    finally:
        hypervisor.close()


class Model:
    """A way, as a queue of bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queue = b""
        self.written = 0

    def write(self, count: int) -> bytes:
        return bytes((self.written + at) * 7 % 251 for at in range(count))

    def wrote(self, data: bytes) -> None:
        self.queue += data
        self.written += len(data)

    def read(self, count: int) -> bytes:
        data, self.queue = self.queue[:count], self.queue[count:]
        return data


@pytest.mark.parametrize("protocol", [NINEPFS, PVCALLS_DATA], ids=repr)
@given(order=st.integers(0, 2), start=st.sampled_from(STARTS), operations=OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_bytes_come_out_as_they_went_in(protocol, order, start, operations):
    with pair(order, start, protocol) as (front, back):
        size = 2048 << order
        models = {"out": Model(size), "in": Model(size)}
        halves = {
            "front writes": ("out", front.outgoing),
            "back reads": ("out", back.incoming),
            "back writes": ("in", back.outgoing),
            "front reads": ("in", front.incoming),
        }
        for what, count in operations:
            way, half = halves[what]
            model = models[way]
            if "writes" in what:
                data = model.write(count)
                assert half.room == size - len(model.queue)
                done = half.write(data)
                assert done == min(count, size - len(model.queue))
                model.wrote(data[:done])
            else:
                assert half.queued == len(model.queue)
                assert half.read(count) == model.read(count)
            assert len(model.queue) <= size
            prod = front.incoming.memory.load32(front.incoming.interface, half.way.prod)
            assert prod == (start + model.written) % U32
        assert front.incoming.read() == models["in"].queue
        assert back.incoming.read() == models["out"].queue
        assert check_byte_ring(front, back) == []


@pytest.mark.parametrize("start", STARTS)
def test_a_full_ring_takes_no_more_at_any_index(start):
    with pair(1, start, NINEPFS) as (front, back):
        assert front.outgoing.write(bytes(range(256)) * 17) == 4096
        assert (front.outgoing.room, front.outgoing.write(b"x")) == (0, 0)
        assert back.incoming.read(10) == bytes(range(10))
        assert front.outgoing.write(b"0123456789abc") == 10
        assert back.incoming.read()[-10:] == b"0123456789"


@pytest.mark.parametrize(
    ("word", "value", "way"),
    [
        ("in_prod", 4097, "front reads"),
        ("in_prod", U32 - 1, "front reads"),
        ("in_prod", 1 << 31, "front reads"),
        ("out_cons", 1, "front writes"),
        ("out_cons", U32 - 4097, "front writes"),
        ("out_prod", 4097, "back reads"),
        ("out_prod", U32 - 1, "back reads"),
        ("in_cons", 1, "back writes"),
        ("in_cons", 1 << 31, "back writes"),
    ],
)
def test_an_index_that_cannot_be_is_the_peers_mistake(word, value, way):
    with pair(1, 0, NINEPFS) as (front, back):
        half = {
            "front reads": front.incoming,
            "front writes": front.outgoing,
            "back reads": back.incoming,
            "back writes": back.outgoing,
        }[way]
        half.memory.store32(half.interface, NINEPFS.offset(word), value)
        with pytest.raises(PeerProtocolError, match=r"bytes in a ring of 4096"):
            half.write(b"x") if way.endswith("writes") else half.read()


def test_an_end_goes_by_its_own_copy_of_its_own_index():
    with pair(1, 0, NINEPFS) as (front, back):
        front.outgoing.write(b"abcdef")
        half = front.outgoing
        half.memory.store32(half.interface, half.way.prod, 4000)  # the backend may write it, too
        front.outgoing.write(b"ghi")
        assert half.memory.load32(half.interface, half.way.prod) == 9
        back.incoming.read(2)
        half.memory.store32(half.interface, half.way.cons, 5)
        assert back.incoming.read() == b"cdefghi"


@pytest.mark.parametrize("order", [0, 1, 2])
def test_in_is_the_first_half_of_the_pages_and_out_the_second(order):
    """9pfs.pandoc, "Ring Setup"."""
    size = 2048 << order
    with pair(order, 0, NINEPFS) as (front, back):
        memory, data = front.outgoing.memory, front.outgoing.data
        back.outgoing.write(b"i" * size)
        front.outgoing.write(b"o" * size)
        whole = b"".join(memory.read(pfn, 0, 4096) for pfn in data)
        assert whole == b"i" * size + b"o" * size


def test_what_is_left_at_rest_is_told():
    with pair(1, 0, PVCALLS_DATA) as (front, back):
        back.outgoing.write(b"hello")
        back.outgoing.error = -104
        assert front.incoming.error == U32 - 104
        (finding,) = check_byte_ring(front, back)
        assert finding == "in: lost wake-up: its consumer sleeps with 5 bytes unread"
        assert table(front) == [
            "pvcalls in: in_prod 0x5, in_cons 0x0, in_error 0xffffff98, 5 of 4096 bytes queued",
            "pvcalls out: out_prod 0x0, out_cons 0x0, out_error 0x0, 0 of 4096 bytes queued",
        ]
        front.incoming.memory.store32(front.incoming.interface, PVCALLS_DATA.offset("in_prod"), 9)
        assert "in_prod is 0x9, its producer published 0x5" in check_byte_ring(front, back)


def test_9pfs_has_no_error_word():
    with pair(1, 0, NINEPFS) as (front, _back), pytest.raises(LocalProtocolError, match="in_error"):
        front.incoming.error  # noqa: B018 - it raises


@pytest.mark.parametrize(("pages", "refs"), [(3, 3), (0, 0), (2, 1), (1024, 1024)], ids=str)
def test_pages_are_a_power_of_two(pages, refs):
    with pair(0, 0, NINEPFS) as (front, _back):
        memory = front.incoming.memory
        with pytest.raises(LocalProtocolError, match=f"{pages} pages, {refs} references"):
            ByteFront(NINEPFS, memory, front.incoming.interface, [1] * pages, [1] * refs)


def test_a_header_without_the_words_is_refused():
    with pytest.raises(LocalProtocolError, match="struct half has no out_cons"):
        ByteRingProtocol.from_cdef(
            "half", "struct half { uint32_t in_cons, in_prod; };", interface="half", device="half"
        )


# over a device


class Upper(ByteBackend):
    """What comes goes back in capitals."""

    protocol = NINEPFS

    def received(self, data: bytes) -> None:
        self.send(data.upper())


class Mute(Upper):
    """It reads and writes, and tells nobody."""

    def event(self) -> None:
        assert self.stream is not None
        self.stream.ring.outgoing.write(self.stream.ring.incoming.read().upper())


class Early(Upper):
    """It makes room before it has read what is there."""

    def event(self) -> None:
        assert self.stream is not None
        half = self.stream.ring.incoming
        while queued := half.queued:
            first = half.index
            half.index = (first + queued) % U32
            half.memory.store32(half.interface, half.way.cons, half.index)
            self.end.notify(self.stream.port)
            pieces = half._pieces(first, queued)
            self.received(b"".join(half.memory.read(*piece) for piece in pieces))
        self.stream.flush()


class Client(ByteFrontend):
    protocol = NINEPFS

    def __init__(self, end) -> None:
        super().__init__(end)
        self.heard = b""

    def received(self, data: bytes) -> None:
        self.heard += data


def talking(x, backend=Upper, size=300):
    """A program writes while earlier bytes are under way: all come back, in order."""
    world = ring_world(NINEPFS, Client, backend)
    x.adopt(world.platform)
    sent = []

    def step() -> None:
        piece = bytes([97 + len(sent)]) * size
        sent.append(piece)
        world.call("send", piece)
        if len(sent) < 4:
            task.wake()

    task = world.domain.task("program", step)
    task.wake()
    x.run()
    assert world.frontend.heard == b"".join(sent).upper()
    assert check_byte_ring(world.frontend.stream.ring, world.backend.stream.ring) == []


def muted(x):
    talking(x, Mute)


def early(x):
    """Of more than the ring holds."""
    talking(x, Early, size=5000)


def flooding(x):
    """More than the ring holds, at once: the rest waits for room."""
    talking(x, size=5000)


@pytest.mark.parametrize("scenario", [talking, flooding])
def test_bytes_come_through_whatever_the_schedule(scenario):
    explore(scenario, examples=25).check()


@pytest.mark.parametrize("scenario", [muted, early])
def test_a_mistake_about_bytes_is_found(scenario):
    result = explore(scenario, examples=150)
    assert result.failed
    assert isinstance(result.failure, AssertionError)


def test_both_ends_under_an_attacked_memory():
    def attacked(x):
        world = ring_world(NINEPFS, Client, Upper)
        x.adopt(world.platform)
        x.attack(world.platform.dom0)
        x.attack(world.domain)
        x.begin()
        world.call("send", b"hello")
        world.run()

    explore(attacked, examples=60).check()


@pytest.mark.parametrize(
    ("word", "value"), [("ring_order", 10), ("ring_order", U32 - 1), ("ref", 0xFFFFFFFF),
                        ("out_prod", 5000), ("in_cons", 1)],
)  # fmt: skip
def test_a_backend_refuses_an_interface_that_cannot_be(word, value):
    with ring_world(NINEPFS, None, Upper, connect=False) as world:
        world.run()
        world.front.attach()
        world.front.words[word] = value
        world.front.announce()
        world.run()
        assert world.broken
        assert world.states[1] is XenbusState.CLOSING


def test_a_raw_frontend_and_a_raw_backend_of_bytes():
    with ring_world(NINEPFS, None, Upper) as world:
        assert world.front.call(b"abc") == b"ABC"
        world.front.words["out_prod"] = 9000
        world.front.notify()
        world.run()
        assert "out_prod 0x2328" in world.broken
    with ring_world(NINEPFS, Client, None) as world:
        world.back.respond = lambda data: data[::-1]
        world.call("send", b"abc")
        world.run()
        assert world.frontend.heard == b"cba"
        world.back.words["in_prod"] = 9000
        world.back.notify()
        world.run()
        assert "in_prod 0x2328" in world.broken
