"""Raw ends of a byte ring's protocol: every word and every byte of it in a test's hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.errors import PeerProtocolError
from xenpv.testing.raw_back import BLK_ANSWERS, RawBack
from xenpv.testing.raw_front import RawFront, RawGuest
from xenpv.testing.ringkit.bytering import ByteBack, ByteFront

if TYPE_CHECKING:
    from xenpv.testing.ringkit.bytering import ByteRingProtocol, Memory

ORDER: Final = 1  # of a ring that nobody asks otherwise of: a page for each way


class Words:
    """The words of an interface's page by their names: `words["in_prod"] = 5`."""

    def __init__(self, protocol: ByteRingProtocol, memory: Memory, interface: int) -> None:
        self._protocol = protocol
        self._memory = memory
        self._interface = interface

    def __getitem__(self, word: str) -> int:
        return self._memory.load32(self._interface, self._protocol.offset(word))

    def __setitem__(self, word: str, value: int) -> None:
        self._memory.store32(self._interface, self._protocol.offset(word), value & 0xFFFFFFFF)


class RawByteFront(RawFront):
    """A frontend of one byte ring of `1 << order` data pages. `ring` stands from `attach` on.

    `words` are those of the interface; writing one moves no index that `ring` goes by. `start` is
    where all indices begin.
    """

    def __init__(
        self,
        protocol: ByteRingProtocol,
        guest: RawGuest,
        devid: int = 0,
        *,
        order: int = ORDER,
        start: int = 0,
    ) -> None:
        self.kind = protocol.device
        super().__init__(guest, devid)
        self.protocol = protocol
        self.order = order
        self.start = start
        self.ref = 0
        self.refs: list[int] = []
        self.ring: ByteFront
        self.words: Words

    def attach(self) -> None:
        super().attach()
        guest = self.guest
        interface = guest.page()
        data = [guest.page() for _ in range(1 << self.order)]
        self.ref = guest.grant(interface)
        self.refs = [guest.grant(pfn) for pfn in data]
        self.ring = ByteFront(
            self.protocol, self.domain, interface, data, self.refs, start=self.start
        )
        self.words = Words(self.protocol, self.domain, interface)

    def keys(self) -> dict[str, str]:
        protocol = self.protocol
        ring = {
            f"{protocol.ring_ref}0": str(self.ref),
            f"{protocol.event_channel}0": str(self.port),
        }
        return {**dict(protocol.front_keys), **ring, "state": "3"}

    def finish(self) -> None:
        super().finish()
        self.state = State.CONNECTED

    def send(self, data: bytes) -> int:
        """Write what there is room for, and an event: how many bytes."""
        done = self.ring.outgoing.write(data)
        self.notify()
        return done

    def take(self) -> bytes:
        """What came, and an event for the room that is there now."""
        data = self.ring.incoming.read()
        if data:
            self.notify()
        return data

    def call(self, data: bytes) -> bytes:
        """Send, let everything happen, take."""
        self.send(data)
        self.platform.run()
        return self.take()


class RawByteBack(RawBack):
    """A backend of one byte ring: `ring` stands while it is connected.

    While `hold` is False what comes is given to `respond`, whose bytes go back.
    """

    ready = (State.INITIALISED, State.CONNECTED)

    def __init__(self, protocol: ByteRingProtocol, device: Device) -> None:
        features = dict(protocol.back_keys)
        super().__init__(device, answers=BLK_ANSWERS, features=features, keys={})
        self.protocol = protocol
        self.hold = False
        self.respond: Callable[[bytes], bytes] | None = None
        self.ring: ByteBack
        self.words: Words

    def attach(self) -> None:
        device, protocol = self.device, self.protocol
        interface = self.map(device.frontend_number(f"{protocol.ring_ref}0", 0))
        self.ring = ByteBack(protocol, self.domain, interface, self.map)
        self.words = Words(protocol, self.domain, interface)
        self.bind(device.frontend_number(f"{protocol.event_channel}0", 0))

    def send(self, data: bytes) -> int:
        """Write what there is room for, and an event: how many bytes."""
        done = self.ring.outgoing.write(data)
        self.notify()
        return done

    def take(self) -> bytes:
        """What came, and an event for the room that is there now."""
        data = self.ring.incoming.read()
        if data:
            self.notify()
        return data

    def event(self) -> None:
        super().event()
        if not self.hold and self.connected and self.respond is not None:
            try:
                data = self.take()
                if data:
                    self.send(self.respond(data))
            except PeerProtocolError as error:
                self.device.fatal(str(error))
