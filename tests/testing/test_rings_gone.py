"""Rings that are gone: nobody holds their handle, and checkers do not take one for a ring that is."""

from __future__ import annotations

import gc

import pytest

from xenpv import MemoryImage, Platform
from xenpv.bus.ring import FrontRing
from xenpv.testing import rings_of, world_raw
from xenpv.testing.linux_blk import LinuxBlk
from xenpv.testing.linux_net import LinuxNet
from xenpv.testing.raw_world import DEVID_XVDA, RawWorld


@pytest.mark.parametrize("again", [False, True])
def test_a_closed_ring_has_no_handle_before_anything_is_collected(again):
    gc.collect()
    gc.disable()
    try:
        platform = Platform()
        with RawWorld(platform, MemoryImage(bytearray(1 << 16)), "xenbr0") as world:
            platform.run()
            fronts = (LinuxBlk(world.guest, DEVID_XVDA), LinuxNet(world.guest, 0))
            platform.run()
            assert (len(platform.dom0.rings), len(world.guest.domain.rings)) == (3, 3)
            for front in fronts:
                front.close()
            platform.run()
            assert (len(platform.dom0.rings), len(world.guest.domain.rings)) == (0, 0)
            if again:
                for front in fronts:
                    front.reopen()
                platform.run()
                assert (len(platform.dom0.rings), len(world.guest.domain.rings)) == (3, 3)
    finally:
        gc.enable()


def test_of_two_handles_on_a_page_the_newer_is_the_rings():
    with world_raw() as world:
        pfn = world.guest.page()
        old = FrontRing(world.guest.domain, (pfn,), req_size=12, rsp_size=4, kind="netif_tx")
        new = FrontRing(world.guest.domain, (pfn,), req_size=8, rsp_size=8, kind="netif_rx")
        (found,) = (
            one for one in rings_of(world.platform) if one.front and one.front.pfns == (pfn,)
        )
        assert found.kind.name == "netif_rx"
        assert found.front.handle is new.handle is not old.handle
