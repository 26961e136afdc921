"""The channel of a migration: bytes in order, and every harm that a test may do to it."""

from __future__ import annotations

import pytest

from xenpv.host.libxl import ToolstackError
from xenpv.migration.channel import Channel, ChannelClosed, Fault, Harm
from xenpv.xen.loop import Loop


def channel(*faults: Fault) -> Channel:
    return Channel(Loop(), to_destination=faults)


def test_bytes_arrive_in_order_and_each_way() -> None:
    both = channel()
    both.source.send("a", b"12")
    both.source.send("b", b"345")
    both.destination.send("c", b"x")
    assert both.destination.receive(4) == b"1234"
    assert both.destination.receive() == b"5"
    assert both.destination.receive() == b""
    assert both.source.receive() == b"x"
    assert both.to_destination.messages == [("a", 2), ("b", 3)]


# harm to the second of three messages b"first", b"second", b"third": what arrives of them in all,
# and whether the channel is at its end then
HARMS = [
    (Fault(1, Harm.CUT), b"first", True),
    (Fault(1, Harm.TRUNCATE), b"firstsec", True),
    (Fault(1, Harm.TRUNCATE, at=1), b"firsts", True),
    (Fault(1, Harm.TRUNCATE, at=99), b"firstsecond", True),
    (Fault(1, Harm.CORRUPT), b"firstsec5ndthird", False),
    (Fault(1, Harm.CORRUPT, at=0), b"first)econdthird", False),
    (Fault(1, Harm.CORRUPT, at=6), b"firstsecondthird", False),
    (Fault(5, Harm.CUT), b"firstsecondthird", False),
]


@pytest.mark.parametrize(("fault", "arrives", "ends"), HARMS, ids=[str(one[0]) for one in HARMS])
def test_harm_to_a_message(fault: Fault, arrives: bytes, ends: bool) -> None:
    both = channel(fault)
    for data in (b"first", b"second", b"third"):
        if both.to_destination.ended:
            with pytest.raises(ChannelClosed, match="cannot be sent: the channel is broken"):
                both.source.send("m", data)
        else:
            both.source.send("m", data)
    assert both.destination.receive() == arrives
    if ends:
        with pytest.raises(ChannelClosed):
            both.destination.receive()
        with pytest.raises(ChannelClosed):
            both.destination.send("back", b"x")
        with pytest.raises(ChannelClosed):
            both.source.receive()
    else:
        assert both.destination.receive() == b""


def test_what_is_delayed_takes_virtual_time_and_is_not_overtaken() -> None:
    both = channel(Fault(0, Harm.DELAY, delay_ns=5_000))
    both.source.send("a", b"1")
    both.source.send("b", b"2")
    assert both.destination.receive() == b""
    assert both.wait()
    assert both.loop.now == 5_000
    assert both.destination.receive() == b"12"
    assert not both.wait()


def test_what_is_under_way_arrives_though_the_sender_is_gone() -> None:
    both = channel(Fault(0, Harm.DELAY, delay_ns=5_000))
    both.source.send("a", b"1")
    both.source.close()
    assert both.destination.receive() == b""
    assert both.wait()
    assert both.destination.receive() == b"1"
    with pytest.raises(ChannelClosed, match="the channel ended"):
        both.destination.receive()
    both.destination.send("back", b"x")  # that way is open


@pytest.mark.parametrize("pieces", [(b"line\0",), (b"l", b"ine", b"\0"), (b"line\0more",)])
def test_a_line_is_taken_when_it_is_whole(pieces: tuple[bytes, ...]) -> None:
    both = channel()
    for number, piece in enumerate(pieces):
        both.source.send("line", piece)
        last = number == len(pieces) - 1
        assert both.destination.receive_line("a line", b"line\0") is last
    assert both.destination.receive() == (b"more" if len(pieces[0]) > 5 else b"")


@pytest.mark.parametrize("wrong", [b"x", b"lin\0", b"line\n", b"LINE\0"])
def test_another_line_is_refused_at_its_first_wrong_byte(wrong: bytes) -> None:
    both = channel()
    both.source.send("line", wrong)
    with pytest.raises(ToolstackError, match="expected a line b'line"):
        both.destination.receive_line("a line", b"line\0")


def test_a_line_that_ends_early() -> None:
    both = channel()
    both.source.send("line", b"li")
    both.source.close()
    with pytest.raises(ChannelClosed, match="the channel ended before a line: got b'li' of b'line"):
        both.destination.receive_line("a line", b"line\0")
