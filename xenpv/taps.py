"""TAPs joined to a platform: frames of the host's kernel on a bridge or at a guest's adapter.

    with Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), Tap.open("tap0"))
        taps.give(guest, 0, Tap.open("tap1"))
        Pump(taps).serve(10.0)

The platform stays what it is, a function of inputs and seed: the pump alone looks at the host's
clock, and all that it does to the platform (a step of the clock, a batch of frames that came in)
goes through two methods of Taps, which a journal records and a replay repeats.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self
from zlib import crc32

from xenpv.errors import LocalProtocolError
from xenpv.host.journal import Arrived, End, JournalReader, JournalTap, JournalWriter, Step
from xenpv.host.network import Bridge, Frame
from xenpv.host.tap import Device, Tap, TapEnd
from xenpv.xen.trace import Event

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.platform import Platform

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
# The longest nap, so that a host's clock that was set forward is seen.
NAP_NS: Final = NS_PER_S


class Attachment(Protocol):
    """What a TAP is joined to."""

    end: TapEnd
    unsent: int  # frames from the TAP that what it is joined to did not take

    @property
    def where(self) -> str:
        """`xenbr0`, or `web.0` of a guest."""

    @property
    def busy(self) -> bool:
        """Whether enough waits inside, so that the TAP is not read meanwhile."""

    def renew(self) -> None:
        """Look for what it is joined to, which may have come back as another."""

    def arrived(self, frames: Sequence[Frame]) -> None:
        """Frames that came from the TAP, in order."""

    def detach(self) -> None:
        """Let go of the platform's end."""


class Looker(Protocol):
    """Who wants to see the platform at rest: a descriptor that becomes readable."""

    def fileno(self) -> int: ...
    def serve(self) -> None:
        """Answer whoever waits, at once."""


class BridgeTap:
    """A TAP as a port of a bridge."""

    busy: Final = False

    def __init__(self, platform: Platform, bridge: Bridge, device: Device, where: str) -> None:
        self.end = TapEnd(device)
        self.name = device.name
        self.where = where
        self.unsent = 0
        self._loop = platform.loop
        self._bridge: Bridge | None = bridge
        bridge.attach(self)

    def receive(self, frames: Sequence[Frame]) -> None:
        """What leaves the bridge here."""
        self.end.give(frames)

    def renew(self) -> None:
        """A bridge stays."""

    def arrived(self, frames: Sequence[Frame]) -> None:
        if self._bridge is None:
            self.unsent += len(frames)
        else:
            self._bridge.transmit(self, frames, self._loop.now)

    def detach(self) -> None:
        if self._bridge is not None:
            self._bridge.detach(self)
            self._bridge = None


class Taps:
    """The TAPs of one platform. Closing it detaches them; descriptors stay the caller's.

    Raises LocalProtocolError where an end has a TAP already.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.attached: list[Attachment] = []
        self.journal: JournalWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def join(self, bridge: Bridge, device: Device, where: str = "") -> BridgeTap:
        """A port of `bridge` that is this TAP; `where` is what reports call the bridge."""
        port = BridgeTap(self.platform, bridge, device, where or bridge.name)
        self.attached.append(port)
        return port

    def give(self, guest: Guest, number: int, device: Device) -> Attachment:
        """Let the kernel behind this TAP have the guest's adapter of that number.

        It is bound as a protocol that sees every frame (promiscuous), instead of what is bound
        there; the TAP gets the adapter's address, if it can have another.
        """
        from xenpv.guesttap import GuestTap

        if any(one.where == f"{guest.name}.{number}" for one in self.attached):
            raise LocalProtocolError(f"adapter {number} of guest {guest.name!r} has a TAP already")
        tap = GuestTap(guest, number, device)
        self.attached.append(tap)
        return tap

    def described(self) -> tuple[JournalTap, ...]:
        """As a journal has them."""
        return tuple(
            JournalTap(
                one.where, not isinstance(one, BridgeTap), one.end.name, one.end.device.headed
            )
            for one in self.attached
        )

    def step(self, until_ns: int) -> None:
        """Let virtual time go on to `until_ns`, and write what comes out. Raises Livelock."""
        if self.journal is not None:
            self.journal.step(until_ns)
        self.platform.toolstack.monitors.advance(max(0, until_ns - self.platform.loop.now))
        for tap in self.attached:
            tap.renew()
        self._flush()

    def arrived(self, index: int, raws: Sequence[bytes]) -> None:
        """One batch that TAP `index` brought, and all that follows from it at this moment."""
        if self.journal is not None:
            self.journal.arrived(index, raws)
        tap = self.attached[index]
        crc = 0
        for raw in raws:
            crc = crc32(raw, crc)
        self.platform.loop.trace.record(Event.OUTSIDE, 0, index, crc)
        frames = tap.end.take(raws)
        if frames:
            tap.arrived(frames)
            self.platform.toolstack.monitors.advance(0)
            self._flush()

    def _flush(self) -> None:
        for tap in self.attached:
            if tap.end.out:
                tap.end.flush()

    def play(self, journal: JournalReader) -> str:
        """Do what a journal says; the digest of its run, "" if it was cut short.

        Raises ConfigError for a journal that is damaged.
        """
        for record in journal.records():
            if isinstance(record, Step):
                self.step(record.until_ns)
            elif isinstance(record, Arrived):
                self.arrived(record.tap, record.frames)
            elif isinstance(record, End):
                return record.digest
        return ""

    def close(self) -> None:
        """Detach them all; a second call does nothing."""
        for tap in self.attached:
            tap.detach()


class Pump:
    """Carries frames between TAPs and their kernel, and the host's time to the platform.

    `clock` counts nanoseconds. Virtual time goes on from where it is, as fast as the host's; when
    the host falls behind, it is let jump. One that asks for the end from a signal calls `stop`.
    `lookers` are woken by their descriptors, and change nothing.
    """

    def __init__(
        self,
        taps: Taps,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        lookers: Sequence[Looker] = (),
    ) -> None:
        self.taps = taps
        self.lookers = lookers
        self.stopped = False
        self._clock = clock
        self._nudge_in, self._nudge = os.pipe()
        for descriptor in (self._nudge_in, self._nudge):
            os.set_blocking(descriptor, False)

    def stop(self) -> None:
        """End `serve` soon; may be called in a signal's handler."""
        self.stopped = True
        os.write(self._nudge, b"\0")

    def serve(self, seconds: float | None = None) -> None:
        """For so long by the host's clock, or until `stop`. Raises Livelock, ConfigError."""
        loop = self.taps.platform.loop
        ahead = loop.now - self._clock()
        end = None if seconds is None else loop.now + round(seconds * NS_PER_S)
        with select.epoll() as poll:
            waiting = _Waiting(poll, self.taps)
            poll.register(self._nudge_in, select.EPOLLIN)
            for looker in self.lookers:
                poll.register(looker, select.EPOLLIN)
            while not self.stopped and (end is None or loop.now < end):
                waiting.update()
                until = loop.now + NAP_NS
                for deadline in (end, loop.next_deadline):
                    if deadline is not None:
                        until = min(until, deadline)
                left_ns = max(0, until - self._clock() - ahead)
                ready = poll.poll(-(-left_ns // NS_PER_MS) / 1000)
                for looker in self.lookers:
                    looker.serve()
                now = max(loop.now, self._clock() + ahead)
                self.taps.step(now if end is None else min(now, end))
                for index, tap in waiting.of(ready):
                    self._read(index, tap)

    def _read(self, index: int, tap: Tap) -> None:
        raws = tap.read()
        if raws:
            self.taps.arrived(index, raws)

    def close(self) -> None:
        os.close(self._nudge_in)
        os.close(self._nudge)


class _Waiting:
    """Which TAPs are looked at: those that are there and whose ends are not busy."""

    def __init__(self, poll: select.epoll, taps: Taps) -> None:
        self._poll = poll
        self._taps: list[tuple[Attachment, Tap]] = []
        for one in taps.attached:
            if not isinstance(one.end.device, Tap):
                raise LocalProtocolError(f"TAP {one.end.name} is played back")
            self._taps.append((one, one.end.device))
        self._looked_at = [False] * len(self._taps)

    def update(self) -> None:
        for index, (attachment, tap) in enumerate(self._taps):
            wanted = not tap.gone and not attachment.busy
            if wanted is not self._looked_at[index]:
                self._looked_at[index] = wanted
                if wanted:
                    self._poll.register(tap, select.EPOLLIN)
                else:
                    self._poll.unregister(tap)

    def of(self, ready: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Tap]]:
        """TAPs among the descriptors that are ready, in the order of their making."""
        descriptors = [descriptor for descriptor, _ in ready]
        for index, (_, tap) in enumerate(self._taps):
            if tap.descriptor in descriptors:
                yield index, tap
