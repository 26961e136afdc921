"""A frontend that does anything at any moment, against the server of every backend.

Whatever it does: no exception leaves the backend, what is mapped is what requests and the cache
hold, no more is answered than was taken, and all is given back at the end.
"""

from __future__ import annotations

import struct

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.blkscene import MS, Scene, scene
from tests.vbd.rawfront import DISCARD, INDIRECT, READ, WRITE
from tests.world import make as make_world
from xenpv.abi._kernel import lib

SECOND = 1000 * MS
REFS = list(range(200, 212))

U32 = st.one_of(
    st.integers(0, 40), st.sampled_from([2**31, 2**32 - 1, 2**32 - 33]), st.integers(0, 2**32 - 1)
)
U64 = st.one_of(st.integers(0, 1100), st.sampled_from([2**55, 2**63, 2**64 - 1, 2**64 - 8]))
REF = st.sampled_from([*REFS, *REFS, 0, 8, 2**31, 2**32 - 1])
SEGMENT = st.builds(
    lambda ref, bounds: struct.pack("<IBB2x", ref, *bounds),
    REF,
    st.one_of(
        st.just((0, 7)), st.tuples(st.integers(0, 8), st.integers(0, 8)), st.just((255, 255))
    ),
)
NR = st.one_of(st.integers(0, 12), st.just(255))
OP = st.one_of(st.sampled_from([0, 1, 2, 3, 0, 1]), st.integers(0, 255))


def padded(*parts: bytes) -> bytes:
    return b"".join(parts).ljust(112, b"\0")[:112]


SLOT = st.one_of(
    st.builds(
        lambda op, nr, rid, sector, segments: padded(
            struct.pack("<BBH4xQQ", op, nr, 0, rid, sector), *segments
        ),
        OP, NR, U64, U64, st.lists(SEGMENT, max_size=11),
    ),
    st.builds(
        lambda inner, nr, rid, sector, refs: padded(
            struct.pack("<BBH4xQQH2x", INDIRECT, inner, nr, rid, sector, 0),
            *(struct.pack("<I", ref) for ref in refs),
        ),
        st.sampled_from([READ, WRITE, READ, WRITE, 2, 6]),
        st.one_of(st.integers(0, 30), st.sampled_from([256, 257, 512, 513, 4097, 65535])),
        U64, U64, st.lists(REF, min_size=8, max_size=8),
    ),
    st.builds(
        lambda flag, rid, sector, count: padded(
            struct.pack("<BBH4xQQQ", DISCARD, flag, 0, rid, sector, count)
        ),
        st.integers(0, 255), U64, U64, U64,
    ),
    st.binary(min_size=112, max_size=112),
)  # fmt: skip
ACTION = st.one_of(
    st.tuples(st.just("send"), st.lists(SLOT, min_size=1, max_size=6)),
    st.tuples(st.just("send"), st.lists(SLOT, min_size=1, max_size=6)),
    st.tuples(st.just("advance"), st.sampled_from([0, MS // 2, MS, 3 * MS, 61 * SECOND])),
    st.tuples(st.just("scribble"), st.tuples(st.integers(64, 4000), st.binary(max_size=40))),
    st.tuples(st.just("index"), st.tuples(st.sampled_from([0, 4, 8, 12]), U32)),
    st.tuples(st.just("revoke"), st.sampled_from(REFS)),
    st.tuples(st.just("grant"), st.tuples(st.sampled_from(REFS), st.sampled_from([1, 5, 0, 2]))),
    st.tuples(st.just("table"), st.lists(SEGMENT, max_size=30)),
    st.tuples(st.just("event"), st.none()),
)


@attrs.define(eq=False)
class Hostile:
    one: Scene
    pfns: list[int]
    produced: int = 0

    def send(self, slots: list[bytes]) -> None:
        front = self.one.front
        assert front.ring is not None
        for slot in slots:
            self.one.world.guest.write(front.ring.pfns[0], 64 + self.produced % 32 * 112, slot)
            self.produced += 1
        self.index((0, self.produced))
        self.event(None)

    def index(self, what: tuple[int, int]) -> None:
        front = self.one.front
        assert front.ring is not None
        self.one.world.guest.write(front.ring.pfns[0], what[0], struct.pack("<I", what[1]))

    def scribble(self, what: tuple[int, bytes]) -> None:
        front = self.one.front
        assert front.ring is not None
        self.one.world.guest.write(front.ring.pfns[0], what[0], what[1])

    def advance(self, ns: int) -> None:
        self.one.world.loop.advance(ns)

    def revoke(self, ref: int) -> None:
        self.one.front.revoke(ref)

    def grant(self, what: tuple[int, int]) -> None:
        guest = self.one.world.guest
        ref, flags = what
        lib.grant_entry_set(guest.kernel, ref, 0, self.pfns[ref % len(self.pfns)], flags)

    def table(self, segments: list[bytes]) -> None:
        self.one.world.guest.write(self.pfns[0], 0, b"".join(segments))

    def event(self, _nothing: None) -> None:
        self.one.world.guest.evtchn.send(self.one.front.port)

    def check(self) -> None:
        """What holds between any two of its moves."""
        one = self.one
        server, ring = one.server, one.server.ring
        pages, kept = server.data.pages, server.persistent
        expected = pages.held
        if kept is not None:
            expected += len(kept) - kept.in_use
            assert len(kept) <= 1056
        assert one.maps() == expected
        flight = (ring.req_cons - ring.rsp_prod) & 0xFFFFFFFF
        assert server.in_flight == flight <= ring.size


@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(ACTION, min_size=1, max_size=14),
    profile=st.sampled_from(["linux", "linux", "qemu", "tapdisk", "mirage"]),
    latency_ns=st.sampled_from([0, MS]),
    persistent=st.booleans(),
    mode=st.sampled_from(["w", "w", "r"]),
    seed=st.integers(0, 3),
)
def test_nothing_that_a_frontend_does_harms_its_backend(
    actions: list[tuple[str, object]], profile: str, latency_ns: int, persistent: bool,
    mode: str, seed: int,
) -> None:  # fmt: skip
    world = make_world(seed)
    one = scene(world, profile, latency_ns=latency_ns, persistent=persistent, mode=mode)
    holes = world.dom0.holes.free_pages
    hostile = Hostile(one, [one.front.page() for _ in range(4)])
    for ref in REFS:
        hostile.grant((ref, 1))
    for name, what in actions:
        getattr(hostile, name)(what)
        hostile.check()
        world.loop.advance(0)
        hostile.check()
    world.loop.advance(SECOND)
    hostile.check()
    if not one.front.driver.halted:
        assert one.server.in_flight == 0
        assert one.server.data.pages.held == 0
    one.server.abandon()
    assert one.maps() == 0
    assert world.dom0.holes.free_pages == holes
    assert one.server.in_flight == 0
    if mode == "r":
        assert {what for what, _, _ in one.image.log} <= {"read"}
    world.hypervisor.close()
