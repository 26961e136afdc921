"""The VIF interface as another's driver gets it: versions 8, 9 and 10, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vif.rawback import GUEST_MAC, Scene, frame, scene
from xenpv.bus.interface import InterfaceVersion
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError
from xenpv.vif.versions import MulticastOverflowError

GUID = "76F279CD-CA11-418B-92E8-C57F77DE0E2E"
# vif_interface.h, behind Acquire and Release.
METHODS = [
    "Enable",
    "Disable",
    "QueryStatistic",
    "QueryRingCount",
    "UpdateHashMapping",
    "ReceiverReturnPacket",
    "ReceiverSetOffloadOptions",
    "ReceiverSetBackfillSize",
    "ReceiverQueryRingSize",
    "ReceiverSetHashAlgorithm",
    "ReceiverQueryHashCapabilities",
    "ReceiverUpdateHashParameters",
    "TransmitterQueuePacket",
    "TransmitterQueryOffloadOptions",
    "TransmitterQueryLargePacketSize",
    "TransmitterQueryRingSize",
    "MacQueryState",
    "MacQueryMaximumFrameSize",
    "MacQueryPermanentAddress",
    "MacQueryCurrentAddress",
    "MacQueryMulticastAddresses",
    "MacSetMulticastAddresses",
    "MacSetFilterLevel",
    "MacQueryFilterLevel",
]
GROUP = bytes.fromhex("01005e000001")
UNICAST, MULTICAST, BROADCAST = 1, 2, 3


class Calls:
    """A driver's callback: what it was called with, behind its argument."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.on_packet: Callable[..., None] = lambda *_: None

    def __call__(self, argument: object, kind: int, *rest: Any) -> None:
        assert argument == "mine"
        self.calls.append((int(kind), *rest))
        if kind == 1:
            self.on_packet(*rest)

    def of(self, kind: int) -> list[tuple[Any, ...]]:
        return [one[1:] for one in self.calls if one[0] == kind]


def taken(s: Scene, version: int) -> tuple[InterfaceVersion, Calls]:
    """Enabled, in our XenNet's place."""
    s.nic.pause()
    vif = s.pdo.query_interface(GUID, version)
    vif.acquire()
    calls = Calls()
    vif.Enable(calls, "mine")
    for kind in (UNICAST, MULTICAST, BROADCAST):
        vif.MacSetFilterLevel(kind, 2)
    s.run()
    return vif, calls


@pytest.mark.parametrize("version", [8, 9, 10])
def test_a_version_has_the_headers_methods_in_its_order(version: int) -> None:
    with scene() as s:
        found = s.pdo.query_interface(GUID.lower(), version)
        assert list(found.operations) == METHODS
        assert found.size == 32 + 8 * 26


# version, size, status
QUERIES = [
    (7, None, NTSTATUS.NOT_SUPPORTED),
    (11, None, NTSTATUS.NOT_SUPPORTED),
    (0, None, NTSTATUS.NOT_SUPPORTED),
    (10, 32 + 8 * 26 - 1, NTSTATUS.BUFFER_OVERFLOW),
    (8, 0, NTSTATUS.BUFFER_OVERFLOW),
]


@pytest.mark.parametrize(("version", "size", "status"), QUERIES)
def test_what_is_not_there_is_refused(version: int, size: int | None, status: NTSTATUS) -> None:
    with scene() as s, pytest.raises(NtStatusError) as caught:
        s.pdo.query_interface(GUID, version, size)
    assert caught.value.status is status


def test_other_interfaces_are_asked_of_the_bus() -> None:
    with scene() as s:
        store = s.pdo.query_interface("86824C3B-D34E-4753-B281-2F1E3AD214D7", 2)
        assert store.interface.NAME == "STORE"
        with pytest.raises(NtStatusError) as caught:
            s.pdo.query_interface("00000000-0000-0000-0000-000000000000", 1)
        assert caught.value.status is NTSTATUS.NOT_SUPPORTED


def test_nothing_works_before_it_is_acquired() -> None:
    with scene() as s:
        vif = s.pdo.query_interface(GUID, 10)
        with pytest.raises(LocalProtocolError, match="not acquired"):
            vif.QueryRingCount()


@pytest.mark.parametrize("version", [8, 9, 10])
def test_a_packet_goes_down_and_comes_back_with_its_cookie(version: int) -> None:
    with scene() as s:
        vif, calls = taken(s, version)
        data = frame(100)
        vif.TransmitterQueuePacket(b"xx" + data + b"yy", 2, len(data), cookie="one")
        ids = [one[3] for one in s.back.sent()]
        s.back.answer_tx(*((one, 0) for one in ids))
        s.run()
        (back,) = calls.of(0)
        if version == 8:
            cookie, done = back
        else:
            cookie, done = back[0].cookie, back[0].completion
        # 14 B of an unknown type are its headers, 86 its payload.
        assert cookie == "one"
        assert (done.type, done.status, done.packet_length, done.payload_length) == (1, 2, 100, 86)


def test_of_a_packet_that_was_not_sent_only_the_status_counts() -> None:
    with scene() as s:
        vif, calls = taken(s, 9)
        vif.TransmitterQueuePacket(frame(1519), 0, 1519, cookie="long")
        s.run()
        done = calls.of(0)[0][0].completion
        assert (done.type, done.status, done.packet_length, done.payload_length) == (0, 3, 0, 0)


def test_of_a_packet_that_the_backend_refused_too() -> None:
    with scene() as s:
        vif, calls = taken(s, 10)
        vif.TransmitterQueuePacket(frame(200), 0, 200, cookie="refused")
        s.back.answer_tx(*((one[3], -1) for one in s.back.sent()))
        s.run()
        done = calls.of(0)[0][0].completion
        assert (done.type, done.status, done.packet_length, done.payload_length) == (0, 4, 0, 0)


def test_a_key_of_the_link_that_says_the_same_is_no_change() -> None:
    with scene() as s:
        _, calls = taken(s, 10)
        path = f"/local/domain/{s.guest.domid}/device/vif/0/disconnect"
        told = []
        for value in ("0", "0", "1", "10", "0", "2"):
            s.xen.toolstack.xs.write(path, value)
            s.xen.toolstack.xs.set_permissions(path, ["n0", f"r{s.guest.domid}"])
            s.run()
            told.append(len(calls.of(2)))
        assert [one - told[0] for one in told] == [0, 0, 1, 1, 2, 2]
        assert told[0] == 1, "of Enable"


@pytest.mark.parametrize("version", [8, 9, 10])
def test_packets_come_up_one_by_one_with_more_but_for_the_last(version: int) -> None:
    with scene() as s:
        vif, calls = taken(s, version)
        frames = [frame(60 + n) for n in range(3)]
        s.back.send(*frames)
        s.run()
        up = calls.of(1)
        fields = (
            up
            if version == 8
            else [(p.index, p.mdl, p.offset, p.length, p.flags, p.maximum_segment_size,
                   p.tag_control_information, p.info, p.hash, p.more, p.cookie) for (p,) in up]
        )  # fmt: skip
        assert [len(one) for one in fields] == [11] * 3
        assert [bytes(one[1]) for one in fields] == frames
        assert [(one[0], one[2], one[3]) for one in fields] == [(0, 0, 60 + n) for n in range(3)]
        assert [one[9] for one in fields] == [True, True, False]
        for one in fields:
            vif.ReceiverReturnPacket(one[10])
        with pytest.raises(LocalProtocolError):
            vif.ReceiverReturnPacket(fields[0][10])


def test_version_10_may_ask_for_a_pause_until_a_packet_is_returned() -> None:
    with scene() as s:
        vif, calls = taken(s, 10)
        cookies: list[int] = []

        def pause(packet: Any) -> None:
            packet.pause = True
            cookies.append(packet.cookie)

        calls.on_packet = pause
        s.back.send(frame(60))
        s.run()
        s.back.send(frame(61), frame(62))
        s.run()
        assert len(calls.of(1)) == 1
        vif.ReceiverReturnPacket(cookies[0])
        s.run()
        assert len(calls.of(1)) == 3


@pytest.mark.parametrize(("version", "arguments"), [(8, ()), (9, (None,)), (10, (None,))])
def test_the_state_of_the_mac_is_said_without_parameters(
    version: int, arguments: tuple[object, ...]
) -> None:
    with scene() as s:
        vif, calls = taken(s, version)
        assert calls.of(2)[0] == arguments
        assert vif.MacQueryState() == (1, 10**11, 2)
        vif.Disable()
        assert calls.of(2)[-1] == arguments
        assert vif.MacQueryState()[:2] == (2, 0)


def status_of(call: Callable[[], object]) -> NTSTATUS:
    try:
        call()
    except NtStatusError as error:
        return error.status
    return NTSTATUS.SUCCESS


# what is called, its status while it is enabled
STATUSES: list[tuple[str, tuple[Any, ...], NTSTATUS]] = [
    ("Enable", (lambda *_: None, "again"), NTSTATUS.SUCCESS),
    ("QueryStatistic", (0,), NTSTATUS.SUCCESS),
    ("QueryStatistic", (49,), NTSTATUS.SUCCESS),
    ("QueryStatistic", (50,), NTSTATUS.INVALID_PARAMETER),
    ("QueryStatistic", (-1,), NTSTATUS.INVALID_PARAMETER),
    ("MacSetMulticastAddresses", ([GROUP],), NTSTATUS.SUCCESS),
    ("MacSetMulticastAddresses", ([],), NTSTATUS.SUCCESS),
    ("MacSetMulticastAddresses", ([GROUP, GUEST_MAC],), NTSTATUS.INVALID_PARAMETER),
    ("MacSetMulticastAddresses", ([b"\1\2"],), NTSTATUS.INVALID_PARAMETER),
    ("MacSetFilterLevel", (1, 2), NTSTATUS.SUCCESS),
    ("MacSetFilterLevel", (1, 3), NTSTATUS.INVALID_PARAMETER),
    ("MacSetFilterLevel", (1, -1), NTSTATUS.INVALID_PARAMETER),
    ("MacSetFilterLevel", (4, 0), NTSTATUS.INVALID_PARAMETER),
    ("MacSetFilterLevel", (0, 0), NTSTATUS.INVALID_PARAMETER),
    ("MacQueryFilterLevel", (3,), NTSTATUS.SUCCESS),
    ("MacQueryFilterLevel", (4,), NTSTATUS.INVALID_PARAMETER),
    ("TransmitterQueuePacket", (bytes(60), 0, 61), NTSTATUS.INVALID_PARAMETER),
    ("TransmitterQueuePacket", (bytes(60), -1, 20), NTSTATUS.INVALID_PARAMETER),
    ("TransmitterQueuePacket", (bytes(60), 0, 0), NTSTATUS.INVALID_PARAMETER),
    ("ReceiverSetHashAlgorithm", (0,), NTSTATUS.SUCCESS),
    ("ReceiverSetHashAlgorithm", (1,), NTSTATUS.SUCCESS),
    ("ReceiverSetHashAlgorithm", (2,), NTSTATUS.NOT_SUPPORTED),  # no control ring
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "status"), STATUSES)
def test_status(name: str, arguments: tuple[Any, ...], status: NTSTATUS) -> None:
    with scene() as s:
        vif, _ = taken(s, 10)
        assert status_of(lambda: getattr(vif, name)(*arguments)) is status


def test_a_packet_is_refused_while_it_is_disabled() -> None:
    with scene() as s:
        vif, _ = taken(s, 10)
        vif.Disable()
        call = lambda: vif.TransmitterQueuePacket(frame(60), 0, 60)  # noqa: E731 - one more line
        assert status_of(call) is NTSTATUS.UNSUCCESSFUL


def test_the_multicast_list_without_room_says_how_many() -> None:
    with scene() as s:
        vif, _ = taken(s, 10)
        vif.MacSetMulticastAddresses([GROUP, b"\x33" * 6])
        assert vif.MacQueryMulticastAddresses() == [GROUP, b"\x33" * 6]
        assert vif.MacQueryMulticastAddresses(2) == [GROUP, b"\x33" * 6]
        with pytest.raises(MulticastOverflowError) as caught:
            vif.MacQueryMulticastAddresses(1)
        assert (caught.value.status, caught.value.count) == (NTSTATUS.BUFFER_OVERFLOW, 2)


# features of the backend, offload options, longest large packets of 4 and 6
TAG, LSO4, HDR, TCP4, UDP4, LSO6, TCP6, UDP6 = (1 << n for n in range(8))
OFFERS = [
    ({}, TAG | HDR | TCP4 | UDP4, (0, 0)),
    ({"feature-no-csum-offload": "1"}, TAG | HDR, (0, 0)),
    ({"feature-no-csum-offload": "2"}, TAG | HDR | TCP4 | UDP4, (0, 0)),
    ({"feature-ipv6-csum-offload": "1"}, TAG | HDR | TCP4 | UDP4 | TCP6 | UDP6, (0, 0)),
    ({"feature-gso-tcpv4": "1"}, TAG | HDR | TCP4 | UDP4 | LSO4, (65201, 0)),
    ({"feature-gso-tcpv6": "1"}, TAG | HDR | TCP4 | UDP4 | LSO6, (0, 65201)),
    ({"feature-gso-tcpv4": "0", "feature-gso-tcpv6": ""}, TAG | HDR | TCP4 | UDP4, (0, 0)),
]


@pytest.mark.parametrize(("features", "options", "sizes"), OFFERS)
def test_offloads_are_those_of_the_backend(
    features: dict[str, str], options: int, sizes: tuple[int, int]
) -> None:
    with scene(features={"feature-sg": "1", **features}) as s:
        vif, _ = taken(s, 10)
        assert vif.TransmitterQueryOffloadOptions() == options
        assert tuple(map(vif.TransmitterQueryLargePacketSize, (4, 6))) == sizes
        assert vif.TransmitterQueryLargePacketSize(5) == 0
        assert (vif.TransmitterQueryRingSize(), vif.ReceiverQueryRingSize()) == (256, 256)
        assert vif.QueryRingCount() == 1
        assert vif.MacQueryMaximumFrameSize() == 1518
        assert vif.MacQueryPermanentAddress() == vif.MacQueryCurrentAddress() == GUEST_MAC
