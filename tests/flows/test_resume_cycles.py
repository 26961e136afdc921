"""A hundred suspends of one domain, resumed as new and as cancelled in turn, under traffic.

Each comes at a moment that the schedule picks. Afterwards nothing is more or less than before:
grants, ports, watches, maptrack entries, nodes, tasks, timers, pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.testing.census import leaks, take_census
from xenpv.testing.checkers import check_all
from xenpv.vbd.srb import SrbStatus

CYCLES = 100
WRITES = 40
FRAMES = 280


@attrs.define(eq=False)
class Sent:
    ended: list[tuple[int, int]] = attrs.Factory(list)

    def sent(self, completions: Sequence[tuple[int, ...]]) -> None:
        self.ended += [(number, status) for number, status, *_ in completions]


@attrs.define(eq=False)
class Scene:
    xen: Platform
    guest: Guest
    image: MemoryImage
    sent: Sent
    errors: int = 0
    dropped: int = 0

    def cycle(self, number: int, result: int) -> None:
        guest, xen, domain = self.guest, self.xen, self.guest.created.domain
        bus, nic, byte = guest.bus, guest.nets[0], bytes([1 + number % 255])
        assert bus is not None
        nic.sender = self.sent
        writes = [guest.disks[0].start_write(8 * n, byte * 4096) for n in range(WRITES)]
        frame = b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(100)
        numbers = nic.send_many([frame] * FRAMES)
        trigger = domain.task("when the schedule likes", bus.suspend.trigger)
        trigger.wake()
        xen.run()
        assert domain.is_shutdown
        xen.dom0.domctl.setvcpucontext(guest.domid, 0, rax=result)
        xen.dom0.domctl.resumedomain(guest.domid)
        xen.run()
        domain.forget(trigger)
        ended = sorted(self.sent.ended)
        self.sent.ended.clear()
        assert [one for one, _ in ended] == list(numbers)
        self.dropped += sum(status != 2 for _, status in ended)
        for n, write in enumerate(writes):
            assert write.is_complete
            found = bytes(self.image.buffer[4096 * n : 4096 * (n + 1)])
            if write.srb_status is SrbStatus.SUCCESS:
                assert found == byte * 4096
            else:
                self.errors += 1


@pytest.mark.parametrize(
    ("personality", "fifo"),
    [("windows", True), ("windows", False), ("linux", False), ("linux", True)],
)
def test_a_hundred_resumes_leave_nothing_behind(personality: str, fifo: bool) -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(4096 * 64))
        guest = xen.create(
            name="g", vcpus=2, disks=[Disk(image)], vifs=[Vif()], personality=personality, fifo=fifo
        ).start()
        s = Scene(xen, guest, image, Sent())
        for number in range(4):  # what is made with its first use is there then
            s.cycle(number, number % 2)
        xen.advance(300)
        before, free = take_census(xen), guest.created.domain.pages.free_pages
        s.errors = s.dropped = 0
        for number in range(CYCLES):
            s.cycle(number, number % 2)
            check_all(xen)
        xen.advance(300)
        assert leaks(before, take_census(xen)) == []
        assert guest.created.domain.pages.free_pages == free
        assert guest.unconnected == []
        # Requests were in flight indeed; only XenVbd gives them up.
        assert (s.errors > 0) == (personality == "windows")
        assert s.dropped > 0
        assert guest.shutdown() == 0
