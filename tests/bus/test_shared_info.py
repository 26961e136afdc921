"""The guest's readers of time against Xen's writers, in every order of their accesses.

The images that the C writer leaves behind, access by access, are recorded through the hook;
then a reader runs, and before each of its own accesses the page moves on by any number of
them. A torn value would be neither the one before nor the one after.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, domain, map_shared_info
from xenpv.abi._kernel import lib
from xenpv.bus.shared_info import SharedInfo, TimeRecord, filetime
from xenpv.errors import Livelock
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

S = 1_000_000_000
YEAR = 365 * 24 * 3600 * S
PAGE = RAM_FIRST_PFN + 9


class Scene:
    """A guest that runs, its shared_info, and the page whose bytes race."""

    def __init__(self, *, is_32bit: bool = False, khz: int = 3_000_000) -> None:
        self.hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES, tsc_khz=khz)
        self.hypervisor.loop.advance(10 * S + 7)
        self.guest = domain(self.hypervisor, is_32bit=is_32bit)
        self.info = SharedInfo(self.guest, map_shared_info(self.guest))
        self.pfn = self.info.pfn
        self.wallclocks = 0

    def set_wallclock(self) -> None:
        """Another one, all of whose words differ."""
        self.wallclocks += 1
        secs = self.wallclocks * ((1 << 32) + 0x1010101)
        self.hypervisor.settime64(secs, 111_111_111 * self.wallclocks, 0)

    def set_time(self) -> None:
        """As if the machine were another one: every field of the record changes."""
        clock = self.hypervisor.clock
        clock.loop.trace.clock += 3 * S
        clock.khz = clock.khz * 3 // 4
        clock.mul ^= 0x7654_3210
        clock.shift = -clock.shift
        assert self.guest.vcpu[0].publish_time(force=False)

    def images(self, *writers: Callable[[], None]) -> list[bytes]:
        """The page before the first write, after each, and after the last, each once."""
        view = self.guest.view(self.pfn)
        images: list[bytes] = []

        def hook(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
            assert kind & lib.ACCESS_HYPERVISOR
            images.append(bytes(view))

        self.hypervisor.set_hook(hook)
        for writer in writers:
            writer()
        self.hypervisor.set_hook(None)
        images.append(bytes(view))
        view.release()
        return [one for at, one in enumerate(images) if not at or one != images[at - 1]]


@contextmanager
def scene(*, is_32bit: bool = False) -> Iterator[Scene]:
    made = Scene(is_32bit=is_32bit)
    try:
        yield made
    finally:
        made.hypervisor.close()


def explore(
    on: Scene,
    images: list[bytes],
    read: Callable[[], Any],
    schedules: Iterable[tuple[int, ...]],
) -> tuple[int, list[Any]]:
    """Run `read` once for each schedule (image before each access); runs, values read."""
    view = on.guest.view(on.pfn)
    last = len(images) - 1
    at = 0
    schedule: tuple[int, ...] = ()

    def hook(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        nonlocal at
        assert not kind & lib.ACCESS_HYPERVISOR
        view[:] = images[schedule[at] if at < len(schedule) else last]
        at += 1

    found: list[Any] = []
    runs = 0
    on.hypervisor.set_hook(hook)
    for schedule in schedules:  # noqa: B007 - the hook reads it
        at = 0
        value = read()
        runs += 1
        if value not in found:
            found.append(value)
    on.hypervisor.set_hook(None)
    view.release()
    return runs, found


def every(accesses: int, images: list[bytes]) -> Iterator[tuple[int, ...]]:
    return combinations_with_replacement(range(len(images)), accesses)


def some(seed: int, accesses: int, images: list[bytes], count: int) -> Iterator[tuple[int, ...]]:
    """Of the schedules with one to four images in them: what tears is a few switches."""
    draw = random.Random(seed)
    for _ in range(count):
        seen = [draw.randrange(len(images)) for _ in range(draw.randint(1, 4))]
        yield tuple(sorted(draw.choice(seen) for _ in range(accesses)))


def at_image(on: Scene, image: bytes, read: Callable[[], Any]) -> Any:
    view = on.guest.view(on.pfn)
    view[:] = image
    view.release()
    return read()


TIME_ACCESSES = 6  # version, four fields, version
TIME_WRITES = 7  # version, tsc, system time, mul, shift, flags, version: flags do not change


def test_a_time_record_is_never_torn() -> None:
    with scene() as on:
        images = on.images(on.set_time)
        assert len(images) == TIME_WRITES  # 6 of the writes change something
        whole = [at_image(on, images[end], on.info.time_record) for end in (0, -1)]
        assert [whole[0].tsc_timestamp, whole[1].tsc_timestamp] == [30 * S, 13 * 9 * S // 4]
        runs, found = explore(on, images, on.info.time_record, every(TIME_ACCESSES, images))
        assert runs == 924
        assert sorted(map(repr, found)) == sorted(map(repr, whole))


@pytest.mark.parametrize("is_32bit", [False, True])
def test_a_wall_clock_is_never_torn(is_32bit: bool) -> None:
    with scene(is_32bit=is_32bit) as on:
        on.set_wallclock()
        images = on.images(on.set_wallclock)
        assert len(images) == 6
        whole = [at_image(on, images[end], on.info.wallclock) for end in (0, -1)]
        runs, found = explore(on, images, on.info.wallclock, every(5, images))
        assert runs == 252
        assert sorted(found) == sorted(whole)


def test_two_writes_in_a_row_are_never_mixed() -> None:
    with scene() as on:
        images = on.images(on.set_time, on.set_time)
        whole = [
            at_image(on, images[end], on.info.time_record) for end in (0, len(images) // 2, -1)
        ]
        runs, found = explore(on, images, on.info.time_record, every(TIME_ACCESSES, images))
        assert runs == 18_564
        assert sorted(map(repr, found)) == sorted(map(repr, whole))


def test_both_clocks_are_of_one_moment() -> None:
    with scene() as on:
        on.set_wallclock()
        images = on.images(on.set_wallclock, on.set_time)
        moments = [0, 5, len(images) - 1]  # before both, between them, after both
        allowed = [at_image(on, images[at], on.info.time) for at in moments]
        assert len(set(allowed)) == 3
        _, found = explore(on, images, on.info.time, some(2, 11, images, 10_000))
        assert sorted(found) == sorted(allowed)


# The mistakes that this has to find.


def _no_odd_version(images: list[bytes]) -> list[bytes]:
    """A writer that stores the fields and then the next even version, never an odd one."""
    return [image[:32] + images[0][32:36] + image[36:] for image in images[:-1]] + images[-1:]


def _version_first(images: list[bytes]) -> list[bytes]:
    """A writer that stores the new even version before the fields."""
    return images[:1] + [image[:32] + images[-1][32:36] + image[36:] for image in images[1:]]


@pytest.mark.parametrize("mistake", [_no_odd_version, _version_first])
def test_a_broken_writer_is_found(mistake: Callable[[list[bytes]], list[bytes]]) -> None:
    with scene() as on:
        images = on.images(on.set_time)
        whole = [at_image(on, images[end], on.info.time_record) for end in (0, -1)]
        broken = mistake(images)
        _, found = explore(on, broken, on.info.time_record, every(TIME_ACCESSES, broken))
        assert [record for record in found if record not in whole]


class Trusting(SharedInfo):
    """Reads the version once and believes it."""

    def time_record(self, vcpu: int = 0) -> TimeRecord:
        while self._time_version(vcpu) % 2:
            pass
        return self._read_time(vcpu)


def test_a_reader_that_does_not_look_again_is_found() -> None:
    with scene() as on:
        images = on.images(on.set_time)
        whole = [at_image(on, images[end], on.info.time_record) for end in (0, -1)]
        read = Trusting(on.guest, on.pfn).time_record
        _, found = explore(on, images, read, every(TIME_ACCESSES - 1, images))
        assert [record for record in found if record not in whole]


# The other way round: the reader runs to its end in the middle of a write.


@pytest.mark.parametrize("clock", ["time_record", "wallclock", "time"])
def test_a_reader_in_the_middle_of_a_write_spins_or_reads_a_whole_value(clock: str) -> None:
    with scene() as on:
        on.set_wallclock()
        read = getattr(on.info, clock)
        before = read()
        seen: list[Any] = []
        inside = False

        def hook(_actor: int, _kind: int, _frame: int, _offset: int, _size: int) -> None:
            nonlocal inside
            if inside:
                return
            inside = True
            try:
                seen.append(read())
            except Livelock as livelock:
                assert "never stood still in 1000 rounds" in str(livelock)
                seen.append(None)
            inside = False

        on.hypervisor.set_hook(hook)
        on.guest.publish_wallclock()
        on.guest.vcpu[0].publish_time(force=True)
        on.hypervisor.set_hook(None)
        spun = {"time_record": 6, "wallclock": 4, "time": 10}[clock]
        assert seen.count(None) == spun
        assert all(value in (None, before) for value in seen)  # the same content, rewritten
        assert read() == before


# Runstate areas: the flag in state_entry_time is their version.


def read_runstate(guest: Domain, *, trusting: bool = False) -> tuple[int, ...]:
    """xen_get_runstate_snapshot of Linux (drivers/xen/time.c)."""
    while True:
        before = guest.read(PAGE, 8, 8)
        state = guest.load32(PAGE, 0)
        times = [guest.read(PAGE, 16 + 8 * n, 8) for n in range(4)]
        if trusting or (guest.read(PAGE, 8, 8) == before and not before[7] & 0x80):
            return (state, *struct.unpack("<5Q", before + b"".join(times)))


@pytest.mark.parametrize("trusting", [False, True])
def test_a_runstate_is_never_torn(trusting: bool) -> None:
    with scene() as on:
        guest = on.guest
        guest.vcpu_op.register_runstate_phys_area(0, PAGE << 12)
        on.pfn = PAGE
        on.hypervisor.loop.advance(S)
        guest.pause()
        on.hypervisor.loop.advance(S)
        state: list[int] = []

        def unpause() -> None:
            guest.vcpu[0]._times[:] = [2 * S, 3 * S, 4 * S, 5 * S]  # so that each changes
            guest.unpause()
            state.append(guest.vcpu[0].state)

        guest.vcpu[0].publish_time(force=True)
        images = on.images(unpause)
        assert state == [0]
        assert len(images) == 8
        ends = [at_image(on, images[end], lambda: read_runstate(guest)) for end in (0, -1)]
        accesses = 6 if trusting else 7
        runs, found = explore(
            on,
            images,
            lambda: read_runstate(guest, trusting=trusting),
            every(accesses, images),
        )
        assert runs == (1716 if trusting else 3432)
        torn = [value for value in found if value not in ends]
        assert bool(torn) == trusting


# What is read is the time.


@given(
    st.integers(1_000, 8_000_000),
    st.integers(0, 10 * YEAR),
    st.integers(0, 10 * YEAR),
    st.booleans(),
)
def test_the_guest_reads_the_loops_time_within_the_error_of_the_scale(
    khz: int, boot_ns: int, later_ns: int, is_32bit: bool
) -> None:
    made = Hypervisor(Loop(), nr_frames=NR_FRAMES, tsc_khz=khz)
    loop = made.loop
    loop.advance(boot_ns)
    guest = domain(made, is_32bit=is_32bit)
    info = SharedInfo(guest, map_shared_info(guest))
    loop.advance(later_ns)
    stamp = info.time_record().system_time
    shift = guest.clock.shift
    ticks = 3 + (1 << max(0, -shift))
    error = (loop.now - stamp) * 2**-31 + ticks * 1e6 / khz + 1
    assert abs(info.system_time() - loop.now) <= error
    assert abs(info.time() - (1_767_225_600 * S + loop.now)) <= error
    made.close()


def test_a_1_ghz_tsc_reads_to_the_nanosecond() -> None:
    made = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    guest = domain(made)
    info = SharedInfo(guest, map_shared_info(guest))
    made.set_time_offset(guest, 3600)
    made.loop.advance(3 * YEAR + 1)
    assert info.system_time() == 3 * YEAR + 1
    assert info.time() == (1_767_225_600 + 3600) * S + 3 * YEAR + 1
    assert filetime(info.time()) == (1_767_229_200 + 11_644_473_600) * 10_000_000 + 3 * YEAR // 100
    made.close()


def test_a_vcpu_info_that_moved_is_read_where_it_is() -> None:
    with scene() as on:
        before = on.info.time_record()
        on.guest.vcpu_op.register_vcpu_info(0, PAGE, 256)
        on.info.moved_vcpu_info(0, PAGE, 256)
        assert on.info.time_record() == before
        on.guest.pause()
        on.hypervisor.loop.advance(S)
        on.guest.unpause()
        assert on.info.time_record().system_time == 11 * S
        assert 11 * S + 5 <= on.info.system_time() <= 11 * S + 7
