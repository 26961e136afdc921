"""The fifty counters: what a completed packet moves, and what it does not."""

from __future__ import annotations

import pytest

from xenpv.vif.callbacks import CHECKSUM_SHIFT, Completion, Traits
from xenpv.vif.packet import Checksum
from xenpv.vif.statistics import Statistic, Statistics

OK, DROPPED, ERROR = 2, 3, 4
UNICAST, MULTICAST, BROADCAST = 1, 2, 3
EVERY = sum(Traits) | sum(Checksum) << CHECKSUM_SHIFT

COMPLETED: dict[str, tuple[list[Completion], dict[str, int]]] = {
    "unicast": ([(0, OK, UNICAST, 60, 6, 0)], {"UNICAST_PACKETS": 1, "UNICAST_OCTETS": 60}),
    "multicast": ([(0, OK, MULTICAST, 61, 6, 0)], {"MULTICAST_PACKETS": 1, "MULTICAST_OCTETS": 61}),
    "broadcast": ([(0, OK, BROADCAST, 62, 6, 0)], {"BROADCAST_PACKETS": 1, "BROADCAST_OCTETS": 62}),
    "dropped": ([(0, DROPPED, UNICAST, 60, 6, EVERY)], {"PACKETS_DROPPED": 1}),
    "an error": ([(0, ERROR, UNICAST, 60, 6, EVERY)], {"PACKETS_DROPPED": 1, "BACKEND_ERRORS": 1}),
    "several": (
        [(0, OK, UNICAST, 60, 0, 0), (1, ERROR, MULTICAST, 70, 0, 0), (2, OK, UNICAST, 80, 0, 0), (3, OK, BROADCAST, 1, 0, 0)],
        {"UNICAST_PACKETS": 2, "UNICAST_OCTETS": 140, "PACKETS_DROPPED": 1, "BACKEND_ERRORS": 1, "BROADCAST_PACKETS": 1, "BROADCAST_OCTETS": 1},
    ),
    "a tag": ([(0, OK, UNICAST, 0, 0, Traits.TAGGED)], {"UNICAST_PACKETS": 1, "TAGGED_PACKETS": 1}),
    "LLC": ([(0, OK, UNICAST, 0, 0, Traits.LLC_SNAP)], {"UNICAST_PACKETS": 1, "LLC_SNAP_PACKETS": 1}),
    "GSO over IPv6": (
        [(0, OK, UNICAST, 0, 0, Traits.IPV6 | Traits.TCP | Traits.GSO | Checksum.TCP_NOT_VALIDATED << CHECKSUM_SHIFT)],
        {"UNICAST_PACKETS": 1, "IPV6_PACKETS": 1, "TCP_PACKETS": 1, "GSO_PACKETS": 1, "TCP_CHECKSUM_NOT_VALIDATED": 1},
    ),
    "UDP over IPv4, three alike": (
        [(n, OK, UNICAST, 10, 0, Traits.IPV4 | Traits.UDP | (Checksum.IP_SUCCEEDED | Checksum.UDP_FAILED) << CHECKSUM_SHIFT) for n in range(3)],
        {"UNICAST_PACKETS": 3, "UNICAST_OCTETS": 30, "IPV4_PACKETS": 3, "UDP_PACKETS": 3, "IPV4_CHECKSUM_SUCCEEDED": 3, "UDP_CHECKSUM_FAILED": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("completions", "moved"), COMPLETED.values(), ids=COMPLETED)
def test_what_a_completion_counts(completions: list[Completion], moved: dict[str, int]) -> None:
    statistics = Statistics()
    statistics.completed(completions)
    counted = {name.name: statistics.query(name) for name in Statistic if statistics.query(name)}
    assert counted == {f"TRANSMITTER_{name}": count for name, count in moved.items()}


def test_every_trait_and_every_checksum_has_a_counter_of_its_own() -> None:
    statistics = Statistics()
    statistics.completed([(0, OK, UNICAST, 0, 0, EVERY)])
    assert [statistics.query(index) for index in range(18, 34)] == [1] * 16


def test_a_trait_that_is_none_moves_nothing() -> None:
    statistics = Statistics()
    statistics.completed([(0, OK, UNICAST, 0, 0, 1 << 7 | 1 << 17)])
    assert sum(statistics.values) == 1
