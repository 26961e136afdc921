"""examples/own_9pfs.py: a version handshake over byte rings, and frames that cannot be."""

from __future__ import annotations

import pytest

from examples import own_9pfs as nine
from xenpv.testing.ringkit import ring_world
from xenpv.testing.ringkit.headers import NINEPFS


def test_the_versions_are_agreed_upon():
    with ring_world(NINEPFS, nine.Client, nine.Server) as world:
        assert world.xs.read(f"{world.backend_path}/max-ring-page-order") == "9"
        assert world.xs.read(f"{world.path}/num-rings") == "1"
        world.call("send", nine.version(nine.TVERSION, 4096, b"9P2000.L"))
        world.call("send", nine.version(nine.TVERSION, 1 << 20, b"9P3000"))
        world.call("send", nine.message(120, 7, b"\1\0\0\0"))
        world.run()
        assert world.frontend.heard == [
            (101, 0xFFFF, bytes.fromhex("00100000 0800") + b"9P2000.L"),
            (101, 0xFFFF, bytes.fromhex("00200000 0700") + b"unknown"),
            (7, 7, bytes.fromhex("5f000000")),
        ]


def test_the_bytes_on_the_wire_are_9ps():
    with ring_world(NINEPFS, None, nine.Server) as world:
        sent = bytes.fromhex("15000000 64 ffff 00200000 0800") + b"9P2000.L"
        came = bytes.fromhex("15000000 65 ffff 00200000 0800") + b"9P2000.L"
        for piece in (sent[:3], sent[3:9], sent[9:-1]):
            assert world.front.call(piece) == b""
        assert world.front.call(sent[-1:]) == came
        assert world.front.call(sent * 3) == came * 3


@pytest.mark.parametrize(
    "sent",
    ["00000000 64 ffff", "06000000 64 ffff", "01200000 64 ffff", "ffffffff 64 ffff",
     "09000000 64 ffff 0000", "15000000 64 ffff 00200000 ffff 3950323030302e4c"],
    ids=["no size", "less than a header", "more than msize", "all ones", "no msize", "text beyond"],
)  # fmt: skip
def test_a_message_that_cannot_be_breaks_the_device(sent):
    with ring_world(NINEPFS, None, nine.Server) as world:
        world.front.call(bytes.fromhex(sent))
        assert world.broken
