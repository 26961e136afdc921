"""Requests served one by one: what is done, when, and how it is answered."""

from __future__ import annotations

import pytest

from tests.back.blkscene import MS, scene, sectors_of
from tests.vbd.rawfront import (
    OKAY,
    READ,
    WRITE,
)
from tests.world import World

PROFILES = ["linux", "qemu", "tapdisk", "mirage"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi", "arm-abi"])
@pytest.mark.parametrize("latency_ns", [0, 5 * MS])
def test_data_goes_to_the_disk_and_comes_back(
    world: World, profile: str, protocol: str, latency_ns: int
) -> None:
    one = scene(world, profile, protocol=protocol, latency_ns=latency_ns)
    front = one.front
    source, out = one.page(b"w" * 4096, readonly=True)
    target, back = one.page()
    assert front.send(front.request(WRITE, 16, [(out, 0, 7)], rid=2**64 - 1)) == [
        (2**64 - 1, WRITE, OKAY)
    ]
    assert front.send(front.request(READ, 15, [(back, 2, 4)], rid=3)) == [(3, READ, OKAY)]
    assert one.read(target) == bytes(1024) + sectors_of(15, 1) + b"w" * 1024 + bytes(1536)
    assert one.now == 2 * latency_ns
    assert (one.maps(), one.pinned(), one.server.in_flight, source != target) == (0, 0, 0, True)
