"""XenVif and XenNet (or the Linux-like personality) under a hostile network backend.

A program of the guest sends frames; the backend passes them on, answers slots with any status,
twice or not at all, delivers frames of one and of several slots with any flags, writes slots and
indices as bytes, changes keys and states, and lets time pass. As long as the backend did nothing
wrong every frame arrives as it was sent, each way; whatever it did, every frame that the guest
sent is completed once the backend is closed, and nothing stays granted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.testing.back_world import BackWorld, world_back
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.frontend import FrontOverlay, operations
from xenpv.testing.overlays.language import VALUES, Language, Operation, pick
from xenpv.testing.raw_back import TX_REQUEST, RawNetBack
from xenpv.testing.sring import RawBackSring

SIZES: Final = (60, 1514, 14, 100, 1000, 61, 512, 1513)
STATUSES: Final = (-1, -2, 1, -3, 0x7FFF, -0x8000, 4096, 4097)
FLAGS: Final = (0, 1, 2, 3, 4, 8, 12, 0xFFFF)
IN_FLIGHT_MAX: Final = 48
KEYS: Final = (
    "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
    "feature-rx-copy", "feature-rx-flip", "feature-split-event-channels", "feature-ctrl-ring",
    "feature-multicast-control", "multi-queue-max-queues", "hotplug-status", "mtu", "online",
    "feature-xdp-headroom", "mac", "error",
)  # fmt: skip


SPOILT: Final = (PeerProtocolError, GrantError, HypercallError, IndexError, ValueError)


class Lenient(RawNetBack):
    """It stops where its own rings were spoilt; `errors` says at what."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.errors: list[str] = []

    def event(self) -> None:
        try:
            super().event()
        except SPOILT as error:
            self.errors.append(f"{type(error).__name__}: {error}")


class NetFrontOverlay(FrontOverlay):
    """One example. `honest`: the backend has done nothing yet that an honest one would not."""

    kind = "vif"
    keys = KEYS

    def __init__(self, personality: str) -> None:
        self.world: BackWorld = world_back(personality=personality, kinds=("vif",), vif=Lenient)
        super().__init__(self.world)
        self.net = self.world.net
        self.mac = self.net.mac
        self.sent: list[bytes] = []
        self.delivered: list[bytes] = []
        self.spare: list[tuple[int, ...]] = []  # tx slots taken by hand: id and what follows
        self.first = self.back  # what it saw is compared
        self.run(b"")

    @property
    def back(self) -> Lenient:
        back = self.world.vif
        assert isinstance(back, Lenient)
        return back

    def rings(self) -> tuple[RawBackSring, ...]:
        return (self.back.tx, self.back.rx) if self.back.connected else ()

    # the guest's program

    def send(self, args: bytes) -> None:
        """A frame of the guest."""
        size, fill = args
        if self.net.in_flight >= IN_FLIGHT_MAX:
            return
        frame = b"\xff" * 6 + self.mac + b"\x88\xb5" + bytes([fill]) * 1500
        frame = frame[: pick(SIZES, size)]
        with suppress(LocalProtocolError):
            self.net.send(frame)
            self.sent.append(frame)

    # the backend

    def deliver(self, args: bytes) -> None:
        """A frame for the guest, as an honest backend sends it; none where nothing is posted."""
        size, fill = args
        frame = self.mac + b"\x00\x16\x3e\x00\x00\xee\x88\xb5" + bytes([fill]) * 1500
        frame = frame[: max(60, pick(SIZES, size))]
        if not self.back.connected:
            return
        try:
            self.back.send(frame)
            self.delivered.append(frame)
        except LocalProtocolError:
            return
        except SPOILT:
            if self.honest:
                raise

    def hold(self, args: bytes) -> None:
        """Answer nothing from now on, or all again."""
        self.back.hold = bool(args[0] & 1)
        if not self.back.hold and self.back.connected:
            if self.spare:
                self.honest = False  # those are not answered as they should
            self.back.event()

    def answer(self, args: bytes) -> None:
        """A tx slot answered with a status, an id or a number of times of its own."""
        status, change, value = args
        if not self.back.connected:
            return
        self.honest = False
        with suppress(PeerProtocolError, HypercallError):
            self.spare += [TX_REQUEST.unpack(raw) for raw in self.back.tx.take()]
        if not self.spare:
            return
        rid = self.spare.pop(0)[3]
        rid = pick(VALUES, value) & 0xFFFF if change & 1 else rid
        for _ in range(2 if change & 2 else 1):
            with suppress(HypercallError):
                self.back.answer_tx(rid, pick(STATUSES, status))

    def fragment(self, args: bytes) -> None:
        """An rx slot answered with any size, offset and flags; its page as it is."""
        status, offset, flags, keep = args
        if not self.back.connected:
            return
        self.honest = False
        with suppress(PeerProtocolError, HypercallError):
            self.back.take_posted()
        if not self.back.posted:
            return
        rid, _ = self.back.posted.pop(0)
        size = pick(STATUSES, status) if status & 0x80 else status * 12
        if keep & 1:
            rid ^= keep
        with suppress(HypercallError):
            self.back.answer_rx(rid & 0xFFFF, size, offset=offset * 17, flags=pick(FLAGS, flags))

    # what must hold

    def end(self) -> None:
        """Honest: every frame arrives. Else: all is over once the backend closes."""
        if self.honest:
            self.back.hold = False
            self.back.event()
            self.world.run()
            self._compare()
        self.world.run()
        check_all(self.platform, hostile=(0,))
        self.back.hold = True
        self.close()
        if self.net.in_flight:
            raise CheckFailed([f"{self.net.in_flight} frames are never completed"])
        self.returned()

    def _compare(self) -> None:
        found = list(self.first.errors)
        padded = [one.ljust(60, b"\0") for one in self.sent]
        seen = [one.ljust(60, b"\0") for one in self.first.frames if one[12:14] == b"\x88\xb5"]
        if self.back is self.first and seen != padded:
            found.append(f"{len(seen)} frames of the guest arrived, {len(padded)} were sent")
        got = [bytes(one) for one in self.net.received]
        if got != self.delivered:
            found.append(f"the guest got {len(got)} frames, {len(self.delivered)} were sent")
        if self.net.in_flight:
            found.append(f"{self.net.in_flight} frames are not completed")
        if found:
            raise CheckFailed(found)


LANGUAGE: Final = Language(
    Operation("send", ("size", "fill"), NetFrontOverlay.send, 7),
    Operation("deliver", ("size", "fill"), NetFrontOverlay.deliver, 6),
    *operations(),
    Operation("hold", ("on",), NetFrontOverlay.hold, 2),
    Operation("answer", ("status", "change", "value"), NetFrontOverlay.answer, 2),
    Operation("fragment", ("status", "offset", "flags", "keep"), NetFrontOverlay.fragment, 2),
)


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    FrontOverlay.play(NetFrontOverlay, LANGUAGE, data)


TARGET: Final = Target("net-frontend", run, LANGUAGE.split, LANGUAGE.words)
