"""The adapter's life: attributes, restart, pause, halt, shutdown, surprise removal; its link."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.test_adapter import frame, pair
from tests.net.test_lists import Lists
from xenpv import Guest
from xenpv.errors import LocalProtocolError
from xenpv.net.adapter import Adapter, AdapterState
from xenpv.net.nbl import NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.platform import Platform, Vif

UP = "8001280001000000020000000000000000e876481700000000e8764817000000" + "00" * 8
DOWN = "80012800020000000200000000000000" + "00" * 24


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Platform(seed=1) as xen:
        yield xen.create(name="g", vifs=[Vif(mac="00:16:3e:00:00:01", mtu=1400)]).start()


@pytest.fixture
def nic(guest: Guest) -> Adapter:
    return guest.nets[0]


def said(nic: Adapter) -> list[str]:
    """Bytes of the link indications so far."""
    return [
        one.value.hex()
        for one in nic.indications
        if one.status == 0x40010017 and isinstance(one.value, bytes)
    ]


def test_the_attributes_claim_a_gigabit_whatever_there_is(nic: Adapter) -> None:
    told = nic.attributes
    assert told.flags == 0x2A  # BUS_MASTER, SURPRISE_REMOVE_OK, NO_HALT_ON_SUSPEND
    assert (told.link_speed, told.is_connected, told.is_full_duplex) == (10**9, True, True)
    assert (told.mtu, told.lookahead) == (1400, 1418)
    assert (told.mac_options, told.packet_filters, told.multicast_list_max) == (0xCD, 0x2F, 32)
    assert told.permanent_address.hex() == told.current_address.hex() == "00163e000001"
    assert len(told.supported_oids) == 53


def test_the_link_is_told_in_40_bytes_at_each_change_that_xenvif_tells(nic: Adapter) -> None:
    assert said(nic)[-1] == UP
    count = len(said(nic))
    nic.mac_state_change()
    assert said(nic)[count:] == [UP]
    assert [link.up for link in nic.links] == [True, True]
    assert nic.pause() is NdisStatus.SUCCESS
    assert said(nic)[-1] == DOWN
    assert nic.query(0x10114) == b"\x02\0\0\0"
    assert nic.restart() is NdisStatus.SUCCESS
    assert said(nic)[-1] == UP
    assert nic.query(0x10114) == b"\x01\0\0\0"


def test_what_is_told_of_an_adapter_is_bounded(nic: Adapter) -> None:
    for _ in range(1000):
        nic.mac_state_change()
    assert len(nic.indications) == 256


def test_an_interface_that_cannot_be_enabled_leaves_the_adapter_paused(
    nic: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenpv.vif.interface import NTSTATUS, NtStatusError, VifInterface

    nic.pause()

    def refuse(_self: VifInterface, _callbacks: Adapter) -> None:
        raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, "no memory")

    monkeypatch.setattr(VifInterface, "enable", refuse)
    assert nic.restart() == 0xC0000001
    assert "no memory" in nic.error
    assert (nic.state, nic.link_up, said(nic)[-1]) == (AdapterState.PAUSED, False, DOWN)
    monkeypatch.undo()
    assert nic.restart() == 0
    assert (nic.state, nic.link_up, nic.error) == (AdapterState.RUNNING, True, "")


# What is done to a running adapter, and its state after.
ENDS = [("shutdown", "shut down"), ("surprise_removed", "removed"), ("halt", "halted")]


@pytest.mark.parametrize(("end", "state"), ENDS)
@pytest.mark.parametrize("paused", [False, True])
def test_each_end_disables_the_interface_and_nothing_starts_it_again(
    nic: Adapter, end: str, state: str, paused: bool
) -> None:
    if paused:
        nic.pause()
    getattr(nic, end)()
    assert (nic.state.value, nic.link_up, said(nic)[-1]) == (state, False, DOWN)
    with pytest.raises(LocalProtocolError, match=state):
        nic.restart()
    with pytest.raises(LocalProtocolError, match=state):
        nic.send(bytes(60))
    nbl = NetBufferList((bytes(60),))
    nic.send_lists([nbl])
    assert nbl.status == 0x00010003
    assert nic.pause() is NdisStatus.SUCCESS
    assert nic.state.value == state
    nic.halt()
    nic.halt()
    assert nic.state is AdapterState.HALTED
    assert nic._vif.references == 0


def test_a_bug_check_touches_nothing(nic: Adapter) -> None:
    nic.shutdown(bug_check=True)
    assert (nic.state, nic.link_up) == (AdapterState.RUNNING, True)


def test_an_end_is_not_told_twice(nic: Adapter) -> None:
    nic.surprise_removed()
    count = len(said(nic))
    nic.surprise_removed()
    nic.shutdown()
    nic.halt()
    assert len(said(nic)) == count
    assert nic.state is AdapterState.HALTED


def test_an_adapter_whose_directory_vanishes_is_removed_by_surprise(guest: Guest) -> None:
    nic = guest.nets[0]
    seen: list[str] = []
    nic.surprise_removed = lambda: seen.append(nic.state.value)  # type: ignore[method-assign]
    guest.platform.toolstack.xs.rm(f"/local/domain/{guest.domid}/device/vif/0")
    guest.platform.run()
    assert seen == ["running"]
    assert nic.state is AdapterState.HALTED


def drivers(guest: Guest) -> list[str]:
    xs, home = guest.platform.toolstack.xs, f"/local/domain/{guest.domid}/drivers"
    return sorted(str(xs.read(f"{home}/{name}")).split(" ")[1] for name in xs.directory(home))


def test_the_driver_has_one_key_while_any_adapter_is_enabled() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif(), Vif()]).start()
        assert drivers(guest).count("XENNET") == 1
        one, other = guest.nets
        one.pause()
        one.pause()
        assert drivers(guest).count("XENNET") == 1
        other.pause()
        assert drivers(guest).count("XENNET") == 0
        other.restart()
        one.restart()
        one.restart()
        assert drivers(guest).count("XENNET") == 1
        home = f"/local/domain/{guest.domid}/drivers"
        found = [
            xen.toolstack.xs.read(f"{home}/{name}") for name in xen.toolstack.xs.directory(home)
        ]
        assert "Xen_Project XENNET 9.1.0.0 " in found


def test_linux_has_no_key_of_a_windows_driver() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif()], personality="linux").start()
        xs = xen.toolstack.xs
        assert guest.nets[0].link_up
        assert xs.directory(f"/local/domain/{guest.domid}/drivers") == []


def test_lists_that_are_lent_outlive_a_pause_and_enable_waits_for_them() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.list_receiver = lists = Lists()
        one.send_many([frame(one, other, 60, n) for n in range(3)])
        xen.run()
        other.pause()
        other.restart()
        xen.run()
        assert not other.link_up
        other.return_lists(lists.got[:2])
        assert not other.link_up
        other.return_lists(lists.got[2:])
        xen.run()
        assert other.link_up
        one.send(frame(one, other, 60, 9))
        xen.run()
        assert lists.got[-1].buffers == (frame(one, other, 60, 9),)


LARGE = (1 << 40) + 5


def test_counters_are_cut_to_what_their_oids_have() -> None:
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif()]).start().nets[0]
        nic._vif._frontend.statistics.values[:18] = [LARGE + n for n in range(18)]

        def u64(number: int) -> int:
            return int.from_bytes(nic.query(number), "little")

        # Unicast, multicast, broadcast packets: 3, 5, 7 and 12, 14, 16.
        assert u64(0x20101) == 3 * LARGE + 15
        assert u64(0x20102) == 3 * LARGE + 42
        low = nic.oid_request(0, 0x20101, length=4).data
        assert low == (3 * LARGE + 15 & 0xFFFFFFFF).to_bytes(4, "little")
        assert u64(0x20103) == (2 * LARGE + 3) & 0xFFFFFFFF
        assert u64(0x20104) == (2 * LARGE + 21) & 0xFFFFFFFF
        assert u64(0x20201) == LARGE + 4 & 0xFFFFFFFF
        assert u64(0x2020C) == LARGE + 16 & 0xFFFFFFFF
        info = [
            int.from_bytes(nic.query(0x20106)[at : at + 8], "little") for at in range(8, 152, 8)
        ]
        assert info == [
            LARGE + 9, 2 * LARGE + 21,
            3 * LARGE + 45, LARGE + 12, LARGE + 14, LARGE + 16,
            3 * LARGE + 18, LARGE + 3, LARGE + 5, LARGE + 7,
            2 * LARGE + 3, 0,
            LARGE + 13, LARGE + 15, LARGE + 17, LARGE + 4, LARGE + 6, LARGE + 8,
        ]  # fmt: skip


def test_the_links_speed_and_its_cable_are_indicated(guest: Guest) -> None:
    nic, xs = guest.nets[0], guest.platform.toolstack.xs
    home = f"/local/domain/{guest.domid}/device/vif/0"
    xs.write(f"{home}/disconnect", "1")
    guest.platform.run()
    assert said(nic)[-1] == "8001280002000000" + "00" * 32
    assert not nic.link_up
    xs.write(f"{home}/speed", "10g")
    xs.write(f"{home}/disconnect", "0")
    guest.platform.run()
    speed = (10**10).to_bytes(8, "little").hex()
    assert said(nic)[-1] == "80012800010000000200000000000000" + 2 * speed + "00" * 8
    assert [link.up for link in nic.links][-2:] == [False, True]
