"""Addresses and the packet filter's levels."""

from __future__ import annotations

import pytest

from tests.vif.rawback import frame, scene
from xenpv.bus.ntstatus import NtStatusError
from xenpv.vif.callbacks import PacketType
from xenpv.vif.mac import FilterLevel, Mac, parse_address

OWN = bytes.fromhex("00163e000001")
OTHER = bytes.fromhex("00163e000002")
LISTED = bytes.fromhex("01005e000001")
GROUP = bytes.fromhex("333300000001")
BROADCAST = b"\xff" * 6


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00:16:3e:00:00:01", OWN),
        ("00-16-3E-00-00-01", OWN),
        ("00163e000001", OWN),
        ("00:16:3e:00:00", None),
        ("00:16:3e:00:00:01:02", None),
        ("00:16:3e:00:00:0g", None),
        ("", None),
        (None, None),
    ],
)
def test_an_address_is_six_pairs_of_hex_digits(text: str | None, address: bytes | None) -> None:
    assert parse_address(text) == address


def passing(unicast: int, multicast: int, broadcast: int) -> set[str]:
    frames = {
        "own": OWN, "other": OTHER, "listed": LISTED, "group": GROUP, "broadcast": BROADCAST,
    }  # fmt: skip
    with scene() as s:
        mac = s.pdo.frontend.mac
        mac.multicast = [LISTED]
        mac.set_filter_level(PacketType.UNICAST, unicast)
        mac.set_filter_level(PacketType.MULTICAST, multicast)
        mac.set_filter_level(PacketType.BROADCAST, broadcast)
        s.back.send(*(frame(60, destination=address) for address in frames.values()))
        s.run()
        got = [data[:6] for data in s.nic.received]
        assert s.nic.statistics.received_dropped == 5 - len(got)
    return {name for name, address in frames.items() if address in got}


@pytest.mark.parametrize(
    ("levels", "passes"),
    [
        ((0, 0, 0), set()),
        ((1, 0, 0), {"own"}),
        ((2, 0, 0), {"own", "other"}),
        ((0, 1, 0), {"listed"}),
        ((0, 2, 0), {"listed", "group"}),
        ((0, 0, 1), {"broadcast"}),
        ((0, 0, 2), {"broadcast"}),
        ((1, 1, 1), {"own", "listed", "broadcast"}),
        ((2, 2, 2), {"own", "other", "listed", "group", "broadcast"}),
    ],
)
def test_each_level_lets_through_what_the_driver_does(
    levels: tuple[int, int, int], passes: set[str]
) -> None:
    assert passing(*levels) == passes


@pytest.mark.parametrize(("filters", "count"), [("1", 2), ("0", 1)])
def test_every_group_passes_level_matching_while_the_backend_filters(
    filters: str, count: int
) -> None:
    features = {"feature-sg": "1", "feature-dynamic-multicast-control": filters}
    with scene(features=features) as s:
        s.pdo.frontend.mac.multicast = [LISTED]
        s.pdo.frontend.mac.set_filter_level(PacketType.MULTICAST, FilterLevel.MATCHING)
        s.back.send(frame(60, destination=LISTED), frame(60, destination=GROUP))
        s.run()
        assert len(s.nic.received) == count


def test_no_level_is_set_at_first() -> None:
    assert set(Mac(permanent=OWN).levels.values()) == {FilterLevel.NONE}


def test_a_unicast_address_is_refused_in_the_multicast_list() -> None:
    mac = Mac(permanent=OWN)
    with pytest.raises(NtStatusError, match="no multicast"):
        mac.set_multicast([LISTED, OWN])
    assert mac.multicast == []
