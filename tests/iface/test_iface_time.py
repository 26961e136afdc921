"""XENIFACE's time is the virtual clock's, whatever changes while it is read."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv import Guest, Platform
from xenpv.abi._kernel import lib
from xenpv.xen.clock import EPOCH

FILETIME_EPOCH_S = 11_644_473_600
S = 1_000_000_000
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.integers(0, 1800 * S)),
        st.tuples(st.just("wallclock"), st.integers(0, 1 << 33)),
        st.tuples(st.just("offset"), st.integers(-(1 << 20), 1 << 20)),
    ),
    max_size=6,
)


def xen_time(guest: Guest) -> int:
    return guest.wmi.base.XenTime


def get_time(guest: Guest) -> int:
    with guest.xencontrol() as process:
        return process.get_time()[0]


@pytest.mark.parametrize("reader", [xen_time, get_time], ids=["XenTime", "IOCTL"])
@given(changes=CHANGES, races=st.integers(0, 1 << 32))
def test_it_is_the_virtual_clock_through_changes_and_races(reader, changes, races) -> None:
    """To one tick of 100 ns of a moment of the reading; between any two of the reader's loads
    Xen may set clock and offset."""
    draw = random.Random(races)
    with Platform(seed=1) as xen:
        guest = xen.create(name="g").start()
        hypervisor, domain, loop = xen.hypervisor, guest.created.domain, xen.loop
        start_s, offset_s = EPOCH, 0
        moments: list[int] = []
        left = 0

        def expected() -> int:
            return (start_s + offset_s + FILETIME_EPOCH_S) * 10_000_000 + loop.now // 100

        def wallclock(secs: int) -> None:
            nonlocal start_s
            start_s = secs + (1 << 21)  # with any offset not before 1970
            hypervisor.settime64(start_s, 0, 0)

        def offset(seconds: int) -> None:
            nonlocal offset_s
            offset_s = seconds
            hypervisor.set_time_offset(domain, seconds)

        def hook(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
            nonlocal left
            if kind & lib.ACCESS_HYPERVISOR or not left or draw.random() < 0.7:
                return
            left -= 1
            hypervisor.set_hook(None)
            (offset if draw.random() < 0.5 else wallclock)(draw.randrange(1 << 20))
            domain.vcpu[0].publish_time(force=True)
            hypervisor.set_hook(hook)
            moments.append(expected())

        does = {"advance": loop.advance, "wallclock": wallclock, "offset": offset}
        for name, value in changes:
            does[name](value)
            assert abs(reader(guest) - expected()) <= 1
            moments[:] = [expected()]
            left = 3
            hypervisor.set_hook(hook)
            try:
                time = reader(guest)
            finally:
                hypervisor.set_hook(None)
            assert min(abs(time - moment) for moment in moments) <= 1
