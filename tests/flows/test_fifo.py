"""Whole guests on the FIFO event channel ABI: the same arrows, the other bits."""

from __future__ import annotations

import pytest

from tests.flows.test_arrows import frame
from xenpv import Disk, MemoryImage, Platform, Vif


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_on_fifo_connects_reads_sends_and_shuts_down(personality: str, vcpus: int) -> None:
    image = MemoryImage(bytearray(n & 0xFF for n in range(1 << 18)))
    with Platform(seed=7) as xen:
        vifs = [Vif(bridge="xenbr0", mac="00:16:3e:00:00:01")]
        guest = xen.create(
            name="web",
            vcpus=vcpus,
            disks=[Disk(image)],
            vifs=vifs,
            personality=personality,
            fifo=True,
        ).start()
        domain = guest.created.domain
        assert domain.evtchn.fifo
        whole = bytes(image.buffer)
        assert guest.disks[0].read(3, 100) == whole[3 * 512 : 103 * 512]
        guest.nets[0].send(frame(500))
        xen.run()
        assert xen.bridge("xenbr0").frames[-1] == frame(500)
        guest.shutdown()
        xen.run()
        assert domain.is_shutdown
