"""The byte channel of a migration: a pipe each way between the two toolstacks.

Between real hosts it is what `xl` gets from ssh: it carries bytes in order, and when it breaks
both ends see the end of what arrived, and no write arrives any more. A test may harm any message
in either direction: `Fault`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.host.libxl import ToolstackError
from xenpv.xen.loop import Loop

MESSAGES_MAX: Final = 1 << 20  # that a pipe remembers the names of


class ChannelClosed(ToolstackError):  # noqa: N818 - it says what happened, as Livelock
    """A write or a read on a channel that is broken."""


class Harm(enum.StrEnum):
    """What becomes of a message. The first two break the channel for good, both ways."""

    CUT = "cut"  # nothing of it arrives
    TRUNCATE = "truncate"  # its first bytes arrive
    CORRUPT = "corrupt"  # a byte of it is another one
    DELAY = "delay"


@attrs.frozen
class Fault:
    """Harm to the `index`-th message of a direction, from 0.

    `at`: at which byte it is cut off or changed; None: in its middle. `delay_ns` of virtual time.
    """

    index: int
    harm: Harm
    at: int | None = None
    delay_ns: int = 0


class Pipe:
    """One direction. `messages` are the names and sizes of what was written so far."""

    def __init__(self, channel: Channel, faults: Sequence[Fault]) -> None:
        self.channel = channel
        self.faults = {fault.index: fault for fault in faults}
        self.messages: list[tuple[str, int]] = []
        self.ended = False  # what is under way still arrives, then its reader sees the end
        self._arriving: list[tuple[int, bytes]] = []  # virtual time, and what arrives then

    def write(self, name: str, data: bytes) -> None:
        """A message. ChannelClosed if the channel broke before; not if it breaks by this one."""
        if self.ended:
            raise ChannelClosed(f"{name} cannot be sent: the channel is broken")
        index = len(self.messages)
        if index < MESSAGES_MAX:
            self.messages.append((name, len(data)))
        now = self.channel.loop.now
        fault = self.faults.get(index)
        if fault is not None:
            now += fault.delay_ns
            data = self._harmed(data, fault)
        if self._arriving:
            now = max(now, self._arriving[-1][0])  # bytes do not overtake each other
        if data:
            self._arriving.append((now, data))

    def _harmed(self, data: bytes, fault: Fault) -> bytes:
        at = len(data) // 2 if fault.at is None else min(fault.at, len(data))
        match fault.harm:
            case Harm.CUT:
                self.channel.cut()
                return b""
            case Harm.TRUNCATE:
                self.channel.cut()
                return data[:at]
            case Harm.CORRUPT if at < len(data):
                return data[:at] + bytes((data[at] ^ 0x5A,)) + data[at + 1 :]
        return data

    def read(self) -> bytes:
        """What arrived since; empty if nothing did."""
        now, arrived = self.channel.loop.now, 0
        while arrived < len(self._arriving) and self._arriving[arrived][0] <= now:
            arrived += 1
        data = b"".join(one for _, one in self._arriving[:arrived])
        del self._arriving[:arrived]
        return data

    @property
    def due(self) -> int | None:
        """When the next bytes arrive; None if there are none on their way."""
        return self._arriving[0][0] if self._arriving else None


class End:
    """What one toolstack has of the channel."""

    def __init__(self, channel: Channel, out: Pipe, into: Pipe) -> None:
        self.channel = channel
        self._out = out
        self._into = into
        self._received = bytearray()

    def send(self, name: str, data: bytes) -> None:
        """As Pipe.write."""
        self._out.write(name, data)

    def close(self) -> None:
        """Its toolstack exits: the other one sees the end of what was sent."""
        self._out.ended = True

    @property
    def _at_end(self) -> bool:
        return self._into.ended and self._into.due is None

    def receive(self, most: int | None = None) -> bytes:
        """At most so many bytes of what arrived; empty if nothing did yet.

        ChannelClosed at the end of it all.
        """
        self._received += self._into.read()
        if not self._received and self._at_end:
            raise ChannelClosed("the channel ended")
        most = len(self._received) if most is None else most
        data = bytes(self._received[:most])
        del self._received[:most]
        return data

    def receive_line(self, name: str, line: bytes) -> bool:
        """Exactly these bytes; False until all have arrived.

        ToolstackError for others, ChannelClosed where it ends before: migrate_read_fixedmessage.
        """
        self._received += self._into.read()
        got = bytes(self._received[: len(line)])
        if not line.startswith(got):
            raise ToolstackError(f"expected {name} {line!r}, got {got!r}")
        if len(got) == len(line):
            del self._received[: len(line)]
            return True
        if self._at_end:
            raise ChannelClosed(f"the channel ended before {name}: got {got!r} of {line!r}")
        return False


class Channel:
    """Both pipes. The faults are those of a test."""

    def __init__(
        self,
        loop: Loop,
        *,
        to_destination: Sequence[Fault] = (),
        to_source: Sequence[Fault] = (),
    ) -> None:
        self.loop = loop
        self.to_destination = Pipe(self, to_destination)
        self.to_source = Pipe(self, to_source)
        self.source = End(self, self.to_destination, self.to_source)
        self.destination = End(self, self.to_source, self.to_destination)

    def cut(self) -> None:
        """What was written before still arrives; then both ends see the end."""
        self.to_destination.ended = self.to_source.ended = True

    def wait(self) -> bool:
        """Both ends wait: let time pass until bytes arrive. False if none are on their way.

        Bytes that are there already are those of an end that is done and reads no more.
        """
        now = self.loop.now
        due = [pipe.due for pipe in (self.to_destination, self.to_source)]
        later = [one for one in due if one is not None and one > now]
        if later:
            self.loop.advance(min(later) - now)
        return bool(later)
