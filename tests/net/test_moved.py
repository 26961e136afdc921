"""An adapter that is saved and goes on elsewhere: lists under way, settings, what is offered."""

from __future__ import annotations

import pytest

from tests.migration import copy
from tests.net.test_offload import ENCAPSULATION, ON, bits
from tests.vif.txscene import tcp4
from xenpv import Guest, Platform, Vif
from xenpv.host.libxl import ToolstackError
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import NdisStatus

V4_TCP = ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP
SUMS = 4 | 8 | 16 | 64 | 128
LARGE = 2 | 32


def made(xen: Platform, personality: str = "windows") -> Guest:
    guest = xen.create(name="g", vifs=[Vif()], personality=personality).start()
    if personality == "windows":
        guest.nets[0].set(ENCAPSULATION, ON)
    return guest


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_lists_under_way_end_once_after_the_move(personality: str) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality)
        net = guest.nets[0]
        lists = [NetBufferList((tcp4(1400),) * 3, checksum=V4_TCP) for _ in range(200)]
        net.send_lists(lists)
        assert net.in_flight == 600
        assert guest.bus is not None
        guest.bus.suspend.trigger()
        xen.run()
        waiting = [one for one in lists if one.pending]
        assert waiting
        saved = copy.save(guest)
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        new.start()
        new.counterparts = copy.Counterparts(guest, new)
        assert new.nets[0].in_flight == 0
        for one in waiting:
            there = new.counterpart(one)
            assert there.pending == 0
            assert there.status in (NdisStatus.SUCCESS, NdisStatus.NOT_ACCEPTED)


def test_what_was_set_stays() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        net = guest.nets[0]
        net.set(0x1010F, b"\1\2\0\0")
        before = [net.offload, net.properties, net.attributes, list(net.indications)]
        new = copy.moved(xen, guest).nets[0]
        assert [new.offload, new.properties, new.attributes] == before[:3]
        assert list(new.indications)[: len(net.indications)] == before[3]
        assert new.query(0x1010F) == b"\1\2\0\0"
        assert new._vif._frontend.receiver_options.offload == int(net.offload.receive)


def test_what_a_new_backend_does_not_offer_goes_off_and_is_told() -> None:
    with Platform(seed=3) as xen, Platform(seed=3, netback="qemu") as poorer:
        guest = made(xen)
        assert bits(guest.nets[0])[0] == 1 | SUMS | LARGE
        told = len(guest.nets[0].indications)
        guest.suspend()
        saved = copy.save(guest)
        guest.destroy()
        new = copy.load(poorer, guest.created.config, saved)
        new.start()
        nic = new.nets[0]
        assert bits(nic)[0] == 1 | 4 | 8 | 16
        statuses = [one.status for one in list(nic.indications)[told:]]
        assert statuses.count(NdisStatus.TASK_OFFLOAD_CURRENT_CONFIG) == 1
        large = NetBufferList((tcp4(5000),), checksum=V4_TCP, mss=1400)
        nic.send_lists([large])
        assert large.status is NdisStatus.FAILURE


def test_a_protocol_of_the_caller_is_refused_by_its_place() -> None:
    class Mine:
        def receive_lists(self, _lists: object) -> None: ...

    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.nets[0].list_receiver = Mine()
        guest.suspend()
        with pytest.raises(ToolstackError, match="vif 0: miniport.list_receiver"):
            copy.save(guest)
