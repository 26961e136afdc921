"""The ring page as INTRODUCE and the guest leave it, a test for each sentence of xen-core 1.9."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.client import message, split
from tests.store.rawguest import RawGuest, add_guest, introduce_guest
from tests.world import World, make
from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.profile import PROFILES
from xenpv.xen.domain import XENSTORE_PFN

INDICES = ("req_cons", "req_prod", "rsp_cons", "rsp_prod")


@pytest.fixture(params=["c"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = make(profile=PROFILES[request.param])
    yield made
    made.hypervisor.close()


def under(*profiles: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", profiles, indirect=True)


def fields(guest: RawGuest, *names: str) -> list[int]:
    return [guest.field(name) for name in names]


def ports_of_dom0(world: World, guest: RawGuest) -> int:
    return world.daemon.rings[guest.domain.domid].port


# The page


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("req", 0),
        ("rsp", 1024),
        ("req_cons", 2048),
        ("req_prod", 2052),
        ("rsp_cons", 2056),
        ("rsp_prod", 2060),
        ("server_features", 2064),
        ("connection", 2068),
        ("error", 2072),
        ("evtchn_port", 2076),
    ],
)
def test_offsets(name: str, offset: int) -> None:
    assert offsetof("xenstore_domain_interface_v2026", name) == offset


@pytest.mark.parametrize("start", [1000, 0x7FFFFFF0, 0xFFFFFFF0])
def test_indices_run_free_and_wrap(world: World, start: int) -> None:
    guest = add_guest(world)
    for name in INDICES:
        guest.field(name, start)
    for index in range(200):
        assert guest.call(XS.WRITE, b"data/n\x00%d" % index) == b"OK\0"
    assert fields(guest, "req_prod", "rsp_prod") != [start, start]
    assert guest.field("req_prod") == guest.field("req_cons")


@under("c", "ox", "legacy")
@pytest.mark.parametrize("ahead", [1025, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("ring", ["req", "rsp"])
def test_more_than_a_ring_ahead_is_fatal(world: World, ring: str, ahead: int) -> None:
    guest = add_guest(world)
    other = add_guest(world)
    if ring == "req":
        guest.field("req_prod", ahead)
    else:  # the server has answered more than there is room for
        guest.put(message(XS.READ, b"data\0"))
        guest.field("rsp_cons", (guest.field("rsp_prod") - ahead) & 0xFFFFFFFF)
    guest.notify()
    tells = world.server.profile.features & lib.XENSTORE_SERVER_FEATURE_ERROR
    assert guest.field("error") == (lib.XENSTORE_ERROR_RINGIDX if tells else 0)
    # Nothing is answered any more; it stays introduced, and others notice nothing.
    guest.field("req_prod", guest.field("req_cons"))
    guest.field("rsp_cons", guest.field("rsp_prod"))
    guest.send(XS.READ, b"data\0")
    assert guest.messages() == []
    assert world.client.call(XS.IS_DOMAIN_INTRODUCED, b"%d\0" % guest.domain.domid) == b"T\0"
    assert other.call(XS.READ, b"data\0") == b""


def test_exactly_a_ring_ahead_is_a_full_ring(world: World) -> None:
    guest = add_guest(world)
    request = message(XS.WRITE, b"data/x\0" + b"v" * (1024 - 16 - 7))
    assert guest.put(request) == 1024
    guest.notify()
    assert [op for op, *_ in guest.messages()] == [XS.WRITE]
    assert guest.field("error") == 0


def test_the_guest_hears_of_each_read_and_each_write(world: World) -> None:
    guest = add_guest(world)
    half = message(XS.READ, b"data\0")
    guest.rang()
    guest.put(half[:5])
    guest.notify()
    assert guest.rang(), "it read, and wrote nothing"
    guest.notify()
    assert not guest.rang(), "there was nothing to do"
    guest.put(half[5:])
    guest.notify()
    assert guest.rang()


# Features


@under("c", "ox", "legacy")
def test_features_offered(world: World) -> None:
    guest = add_guest(world)
    expected = {"c": 14, "ox": 1, "legacy": 0}[world.server.profile.name]
    assert guest.field("server_features") == expected


def test_features_are_published_once(world: World) -> None:
    guest = add_guest(world)
    guest.field("server_features", 0x55)
    introduce_guest(guest)
    assert guest.field("server_features") == 0x55


# INTRODUCE


def test_the_page_is_grant_one_whatever_the_frame_says(world: World) -> None:
    guest = add_guest(world, introduce=False)
    introduce_guest(guest, frame=0xDEAD)
    assert guest.call(XS.READ, b"data\0") == b""


@pytest.mark.parametrize("junk", [1, 7, 0xFFFFFFFF])
def test_the_first_introduce_zeroes_the_indices(world: World, junk: int) -> None:
    guest = add_guest(world, introduce=False)
    for name in INDICES:
        guest.field(name, junk)
    introduce_guest(guest)
    assert fields(guest, *INDICES) == [0, 0, 0, 0]
    assert guest.field("error") == 0


def test_a_port_in_the_page_is_preferred(world: World) -> None:
    guest = add_guest(world, introduce=False)
    named = guest.domain.evtchn.alloc_unbound(0)
    guest.field("evtchn_port", named)
    introduce_guest(guest)
    port = ports_of_dom0(world, guest)
    assert world.dom0.evtchn.status(port).remote_port == named
    guest.port = named
    assert guest.call(XS.READ, b"data\0") == b""


@under("ox", "legacy")
def test_others_do_not_look_for_a_port_in_the_page(world: World) -> None:
    guest = add_guest(world, introduce=False)
    guest.field("evtchn_port", guest.domain.evtchn.alloc_unbound(0))
    introduce_guest(guest)
    assert world.dom0.evtchn.status(ports_of_dom0(world, guest)).remote_port == guest.port


def test_a_port_in_the_page_that_cannot_be_bound_introduces_nothing(world: World) -> None:
    guest = add_guest(world, introduce=False)
    guest.field("evtchn_port", 999)
    with pytest.raises(StoreError, match="EINVAL"):
        introduce_guest(guest)
    assert guest.domain.domid not in world.daemon.rings
    assert world.client.call(XS.IS_DOMAIN_INTRODUCED, b"%d\0" % guest.domain.domid) == b"F\0"
    guest.field("evtchn_port", 0)
    assert introduce_guest(guest) == b"OK\0"


def test_introduce_again_takes_the_port_it_names(world: World) -> None:
    guest = add_guest(world)
    guest.field("evtchn_port", 999)
    guest.port = guest.domain.evtchn.alloc_unbound(0)
    old = ports_of_dom0(world, guest)
    introduce_guest(guest)
    new = ports_of_dom0(world, guest)
    assert world.dom0.evtchn.status(new).remote_port == guest.port
    assert old == new, "the old port is closed, so its number is free"
    assert guest.call(XS.READ, b"data\0") == b""


def test_introduce_again_is_ok_and_a_reset_even_if_the_port_cannot_be_bound(world: World) -> None:
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    guest.messages()
    assert introduce_guest(guest, port=999) == b"OK\0"
    assert fields(guest, *INDICES) == [0, 0, 0, 0]
    assert ports_of_dom0(world, guest) == 0
    connection = world.daemon.rings[guest.domain.domid].connection
    assert not connection.watches
    guest.port = guest.domain.evtchn.alloc_unbound(0)
    assert introduce_guest(guest) == b"OK\0"
    assert guest.call(XS.READ, b"data\0") == b""


def test_introduce_again_drops_watches_transactions_and_both_buffers(world: World) -> None:
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    guest.send(XS.TRANSACTION_START, b"\0")
    guest.messages()
    world.write(f"/local/domain/{guest.domain.domid}/data/big", "v" * 900)
    guest.messages()
    for _ in range(3):  # more than the ring holds, so some wait behind it
        guest.send(XS.READ, b"data/big\0")
    guest.put(message(XS.READ, b"data\0")[:9])
    guest.notify()
    guest.domain.evtchn.close(guest.port)
    guest.port = guest.domain.evtchn.alloc_unbound(0)
    introduce_guest(guest)
    domain = world.server.known[guest.domain.domid]
    assert (domain.watches, domain.transactions, domain.outstanding) == (0, 0, 0)
    world.write(f"/local/domain/{guest.domain.domid}/data/x", "")
    assert guest.messages() == []
    assert guest.call(XS.READ, b"data\0", tx_id=1) == b"!ENOENT\0"
    assert guest.call(XS.READ, b"data\0") == b""


@pytest.mark.parametrize(("asked", "rung"), [(0, False), (1, True), (2, False)])
def test_connection_one_is_answered_by_zero_and_an_event(
    world: World, asked: int, rung: bool
) -> None:
    guest = add_guest(world, introduce=False)
    for again in (False, True):
        if again:
            guest.domain.evtchn.close(guest.port)
            guest.port = guest.domain.evtchn.alloc_unbound(0)
        guest.field("connection", asked)
        introduce_guest(guest)
        assert guest.field("connection") == (0 if asked == 1 else asked)
        assert guest.rang() == rung


def test_introduce_fires_once_and_with_its_number_for_depth_watches(world: World) -> None:
    watcher = world.server.connect_local("watcher")
    watcher.call(XS.WATCH, b"@introduceDomain\0plain\0")
    watcher.call(XS.WATCH, b"@introduceDomain\0deep\x001\0")
    watcher.events.clear()
    guest = add_guest(world)
    number = b"@introduceDomain/%d" % guest.domain.domid
    assert list(watcher.events) == [(b"@introduceDomain", b"plain"), (number, b"deep")]
    watcher.events.clear()
    introduce_guest(guest)
    assert not watcher.events


@under("c", "ox")
def test_introduce_again_with_another_frame(world: World) -> None:
    guest = add_guest(world)
    if world.server.profile.name == "ox":
        with pytest.raises(StoreError, match="EINVAL"):
            introduce_guest(guest, frame=2)
    else:
        assert introduce_guest(guest, frame=2) == b"OK\0"
    assert introduce_guest(guest, frame=2 if world.server.profile.name == "c" else 1) == b"OK\0"


# Frozen connections


def test_a_frozen_connection_is_not_revived(world: World) -> None:
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    guest.messages()
    guest.field("req_prod", guest.field("req_cons") + 2000)
    guest.notify()
    assert guest.field("error") == lib.XENSTORE_ERROR_RINGIDX
    domain = world.server.known[guest.domain.domid]
    assert (domain.watches, domain.transactions) == (0, 0)
    introduce_guest(guest)
    assert guest.field("error") == lib.XENSTORE_ERROR_RINGIDX
    assert fields(guest, *INDICES) == [0, 0, 0, 0]
    guest.send(XS.READ, b"data\0")
    assert guest.messages() == []
    world.hypervisor.destroy_domain(guest.domain)
    world.loop.run()
    assert guest.domain.domid not in world.daemon.rings


def test_an_oversized_request_is_a_protocol_error(world: World) -> None:
    guest = add_guest(world)
    guest.put(message(XS.READ, b"")[:12] + (4097).to_bytes(4, "little"))
    guest.notify()
    assert guest.field("error") == lib.XENSTORE_ERROR_PROTO


def test_so_is_one_that_waited_because_the_guest_owed_too_much(world: World) -> None:
    guest = add_guest(world)
    world.write(f"/local/domain/{guest.domain.domid}/data/big", "v" * 900)
    world.server.known[guest.domain.domid].limits.outstanding = 1
    reads = 2 * message(XS.READ, b"data/big\0")  # the second reply does not fit
    guest.put(reads + message(XS.READ, b"data\0")[:12] + (4097).to_bytes(4, "little"))
    guest.notify()
    assert guest.field("error") == 0
    while guest.take():
        guest.notify()
    assert guest.field("error") == 3
    assert world.daemon.rings[guest.domain.domid].frozen == 3


@under("ox")
def test_ox_serves_the_first_4096_bytes_and_reads_on_behind_them(world: World) -> None:
    guest = add_guest(world)
    long = b"data/x\0" + b"v" * 4093  # one value of 4,089 bytes and four bytes more
    data = message(XS.WRITE, long, req_id=1) + message(XS.READ, b"data\0", req_id=2)[4:]
    tail = (XS.READ).to_bytes(4, "little")
    stream = data[: 16 + 4096] + tail + data[16 + 4100 :]
    got = b""
    while stream:
        stream = stream[guest.put(stream) :]
        guest.notify()
        got += guest.take()
        guest.notify()
    assert [(op, req) for op, req, *_ in split(got + guest.take())][-1] == (XS.READ, 2)
    assert guest.field("error") == 0


@pytest.mark.parametrize(
    ("error", "code"), [("NONE", 0), ("COMM", 1), ("RINGIDX", 2), ("PROTO", 3)]
)
def test_error_codes(error: str, code: int) -> None:
    assert getattr(lib, f"XENSTORE_ERROR_{error}") == code


# Reconnection


def test_c_ignores_a_live_guests_request_for_reconnection(world: World) -> None:
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    guest.messages()
    guest.field("connection", 1)
    before = fields(guest, *INDICES)
    guest.notify()
    assert guest.field("connection") == 1
    assert fields(guest, *INDICES) == before
    assert guest.call(XS.READ, b"data\0") == b""


@under("ox")
def test_ox_reconnects_a_live_guest(world: World) -> None:
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    guest.send(XS.TRANSACTION_START, b"\0")
    guest.messages()
    guest.put(message(XS.READ, b"data\0")[:7])  # a partial packet
    guest.notify()
    guest.field("connection", 1)
    guest.rang()
    guest.notify()
    assert guest.field("connection") == 0
    assert guest.rang()
    assert fields(guest, *INDICES) == [0, 0, 0, 0]
    assert guest.domain.read(XENSTORE_PFN, 0, 2048) == b"\xff" * 2048
    domain = world.server.known[guest.domain.domid]
    assert (domain.watches, domain.transactions) == (0, 0)
    world.write(f"/local/domain/{guest.domain.domid}/data/x", "1")
    assert guest.messages() == []
    assert guest.call(XS.READ, b"data/x\0") == b"1"


@under("ox")
def test_ox_does_not_take_a_bad_index_for_a_reconnection(world: World) -> None:
    guest = add_guest(world)
    guest.field("req_prod", 5000)
    guest.notify()
    guest.field("connection", 1)
    guest.notify()
    assert guest.field("connection") == 1


# Who hears what


def test_nothing_unsolicited_goes_to_a_guest_without_watches(world: World) -> None:
    guest = add_guest(world)
    world.write(f"/local/domain/{guest.domain.domid}/data/x", "1")
    add_guest(world)
    world.loop.run()
    assert guest.take() == b""
