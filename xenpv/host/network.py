"""The network behind the backends: what a port is, and a learning bridge between ports.

A frame enters with `Bridge.transmit`, in a batch and with the virtual time, and leaves by
`Port.receive` of every other port that it concerns. A port never transmits inside its
`receive`: it keeps what it wants to say and wakes a task of its own (`Wakeup`), so no two
ends ever stand on one stack. The bridge has no clock, no timer and no randomness.

Offload metadata travels with the frame: the bridge hands over an unfinished checksum or an
unsegmented TCP packet as it came in, and the receiving port decides (`offload` finishes
both in software).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, IntEnum
from typing import Protocol, overload

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.host import vlan
from xenpv.host.vlan import PortVlans

# xen/include/public/io/netif.h, XEN_NETIF_GSO_TYPE_*
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 2

ETHERNET_HEADER = 14
FRAME_MAX = 65535 + ETHERNET_HEADER  # an IP packet of the largest size, without a tag
FDB_LIMIT = 4096  # learnt addresses of one bridge; Linux leaves this unbounded by default
AGEING_NS = 300 * 10**9  # BR_DEFAULT_AGEING_TIME
RECENT_FRAMES = 4096

_LINK_LOCAL = b"\x01\x80\xc2\x00\x00"  # with a last byte of 0-0F: never forwarded (802.1D 7.12.6)
_NO_ADDRESS = bytes(6)


class Lender(Protocol):
    """Whose pages a frame's bytes are from."""

    def returned(self, lease: Lease) -> None:
        """The last share was given back."""


class Lease:
    """Slots of a guest that stay unanswered for as long as somebody has the frame they carried.

    A port that keeps a frame after `receive` takes a share with `hold` and gives it back with
    `drop`, once for each frame it has: a packet's segments have one lease.
    """

    __slots__ = ("_lender", "shares", "slots")

    def __init__(self, lender: Lender, slots: Sequence[int]) -> None:
        self._lender = lender
        self.slots = slots  # by the lender's numbers
        self.shares = 1  # the lender's own

    def hold(self) -> None:
        self.shares += 1

    def drop(self) -> None:
        self.shares -= 1
        if not self.shares:
            self._lender.returned(self)


@attrs.define(order=False)
class Frame:
    """One Ethernet frame without FCS, with what its sender said about offloads.

    Not frozen because a frozen instance costs three times as much to build; yet a flooded
    frame is shared by all its receivers, so change it with `attrs.evolve` only.
    """

    data: bytes
    # The TCP or UDP checksum field holds only the pseudo-header's sum.
    csum_blank: bool = False
    # The sender vouches for the checksum; a blank one counts as good as well.
    data_validated: bool = False
    gso_type: int = GSO_NONE
    gso_size: int = 0  # TCP payload bytes of a segment (MSS)
    # (bit number of XEN_NETIF_CTRL_HASH_TYPE_*, value) of the HASH extra
    hash: tuple[int, int] | None = None
    # The queue that it came through or goes to and its first slot there; -1: of no ring.
    queue: int = -1
    slot: int = -1
    # Set where the sender's pages are not copied; whoever evolves a frame passes it on.
    lease: Lease | None = attrs.field(default=None, eq=False, repr=False)


class FrameBatch(Sequence[Frame]):
    """Frames without offloads, back to back in `data`; each ends where `ends` (u32) says.

    A Frame of its own is made of each when one is looked at, so that a sink which takes the
    batch as a whole pays for none. `data` is the batch's own: nobody writes to it again.
    `queue`, `slot`: where they came from, each in the slot after the one before, in a ring of
    `slots`.
    """

    __slots__ = ("_data", "_ends", "_frames", "_queue", "_slot", "_slots")

    def __init__(
        self,
        data: memoryview,
        ends: memoryview,
        *,
        queue: int = -1,
        slot: int = -1,
        slots: int = 1,
    ) -> None:
        self._data = data
        self._ends = ends
        self._frames: list[Frame] | None = None
        self._queue = queue
        self._slot = slot
        self._slots = slots

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        return self.frames[index]

    @property
    def frames(self) -> list[Frame]:
        """All of them, the same objects at every call."""
        if self._frames is None:
            data = self._data.tobytes()
            ends = self._ends.tolist()
            starts = [0, *ends[:-1]]
            self._frames = [Frame(data[at:end]) for at, end in zip(starts, ends, strict=True)]
            if self._queue >= 0:
                for number, frame in enumerate(self._frames):
                    frame.queue = self._queue
                    frame.slot = (self._slot + number) % self._slots
        return self._frames


class Port(Protocol):
    """What is attached to a bridge: a backend's vif, a station of the host, a TAP."""

    @property
    def name(self) -> str:
        """Unique on the bridge: `vif1.0`."""

    def receive(self, frames: Sequence[Frame]) -> None:
        """Take frames that leave the bridge here; must not transmit before it returns."""


class RingPort(Port, Protocol):
    """A port that puts frames into a guest's slots later, and tells by `Bridge.placed`."""

    @property
    def places(self) -> bool:
        """Captures show a frame that leaves here when it is in its slots, not before."""


class Wakeup(Protocol):
    """A task of the platform's loop that runs its owner's `poll` soon."""

    def wake(self) -> None:
        """Queue the task, if it is not queued already."""


class Direction(IntEnum):
    """Seen from the host, as on a Linux vif; values of pcapng's epb_flags."""

    IN = 1  # from the port into the bridge
    OUT = 2


class Tap(Protocol):
    """Sees every frame that crosses a port, in order, dropped ones on their way in too."""

    def capture(self, port_name: str, direction: Direction, frame: Frame, now_ns: int) -> None:
        """Record one frame; must not touch the bridge."""

    def lost(self, port_name: str, count: int) -> None:
        """So many frames on their way out by that port were dropped behind it."""


class Drop(Enum):
    """Why the bridge dropped a frame."""

    SIZE = "under 14 or over 65549 bytes"
    SOURCE = "group or zero source address"
    LINK_LOCAL = "destination 01:80:C2:00:00:00-0F"
    VLAN = "of a VLAN that the port is not in, or without a tag where it must have one"
    SAME_PORT = "destination is behind the port it came from"


@attrs.frozen
class FdbEntry:
    """A line of the forwarding database, as `bridge fdb show` lists them.

    `vid` is 0 unless the bridge filters VLANs.
    """

    mac: bytes
    port: str
    age_ns: int
    vid: int = 0


class BridgePort:
    """A port's place on the bridge with its counters (received: from the port)."""

    __slots__ = (
        "pending",
        "port",
        "promiscuous",
        "received_bytes",
        "received_frames",
        "sent_bytes",
        "sent_frames",
        "vlans",
    )

    def __init__(self, port: Port, vlans: PortVlans, *, promiscuous: bool) -> None:
        self.port = port
        self.vlans = vlans
        self.promiscuous = promiscuous
        self.received_frames = 0
        self.received_bytes = 0
        self.sent_frames = 0
        self.sent_bytes = 0
        # Frames that leave here at the end of the bridge's present transmit; else empty.
        self.pending: list[Frame] = []

    def take(self) -> list[Frame]:
        frames, self.pending = self.pending, []
        return frames


class _Learnt:
    __slots__ = ("port", "seen_ns")

    def __init__(self, port: BridgePort, seen_ns: int) -> None:
        self.port = port
        self.seen_ns = seen_ns


def _drop_counters() -> dict[Drop, int]:
    return dict.fromkeys(Drop, 0)


class Bridge:
    """An 802.1D learning bridge without spanning tree, as Linux' with its defaults.

    `frames` keeps the bytes of the latest accepted frames, as they came in, whether or not
    another port was there to take them. `vlan_filtering`: tags mean something, and each VLAN has
    addresses of its own; the first port with VLANs of its own turns it on.
    """

    __slots__ = (
        "_delivering",
        "_fdb",
        "_mirrors",
        "_promiscuous",
        "_vlan_filtering",
        "_vlans",
        "ageing_ns",
        "drops",
        "fdb_limit",
        "flooded",
        "forwarded",
        "frames",
        "name",
        "ports",
        "taps",
    )
    frames: deque[bytes]

    def __init__(
        self,
        name: str,
        *,
        fdb_limit: int = FDB_LIMIT,
        ageing_ns: int = AGEING_NS,
        taps: Sequence[Tap] = (),
    ) -> None:
        self.name = name
        self.fdb_limit = fdb_limit
        self.ageing_ns = ageing_ns
        self.taps: list[Tap] = list(taps)
        self.ports: dict[str, BridgePort] = {}
        self.forwarded: int = 0
        self.flooded: int = 0
        self.drops: dict[Drop, int] = _drop_counters()
        # Least recently seen first, so that the oldest is at hand when the table is full.
        self._fdb: OrderedDict[bytes, _Learnt] = OrderedDict()
        self._delivering: bool = False
        self._vlan_filtering = False
        # What was said of ports by their names, which comes and goes with no connection.
        self._vlans: dict[str, PortVlans] = {}
        self._promiscuous: dict[str, bool] = {}
        self._mirrors: list[BridgePort] = []  # those of the ports that are promiscuous
        self.frames = deque(maxlen=RECENT_FRAMES)

    @property
    def dropped(self) -> int:
        """Frames dropped for any reason."""
        return sum(self.drops.values())

    @property
    def vlan_filtering(self) -> bool:
        return self._vlan_filtering

    @vlan_filtering.setter
    def vlan_filtering(self, on: bool) -> None:
        if on != self._vlan_filtering:
            self._vlan_filtering = on
            self._fdb.clear()

    def attach(self, port: Port, vlans: PortVlans | None = None) -> None:
        """`vlans` None: what set_vlans said, or the default PVID alone.

        Raise LocalProtocolError when a port of that name is attached already.
        """
        name = port.name
        if name in self.ports:
            raise LocalProtocolError(f"bridge {self.name}: port {name} is attached already")
        told = self._vlans.get(name, vlans)
        if told is not None:
            self.vlan_filtering = True
        self.ports[name] = BridgePort(
            port, told or vlan.DEFAULT, promiscuous=self._promiscuous.get(name, False)
        )
        self._note_mirrors()

    def set_vlans(self, name: str, vlans: PortVlans | str) -> None:
        """VLANs of the port of that name, whenever it is attached; text is as in xl.cfg.

        ValueError for text that is none.
        """
        told = vlan.parse_vlans(vlans) if isinstance(vlans, str) else vlans
        self._vlans[name] = told
        self.vlan_filtering = True
        if name in self.ports:
            self.ports[name].vlans = told

    def set_promiscuous(self, name: str, on: bool = True) -> None:
        """Whether the port of that name gets what others get too (XAPI's brport/promisc)."""
        self._promiscuous[name] = on
        if name in self.ports:
            self.ports[name].promiscuous = on
            self._note_mirrors()

    def _note_mirrors(self) -> None:
        self._mirrors = [port for port in self.ports.values() if port.promiscuous]

    def detach(self, port: Port) -> None:
        """Remove a port and the addresses learnt there."""
        leaving = self._attached(port)
        del self.ports[port.name]
        for mac in [mac for mac, learnt in self._fdb.items() if learnt.port is leaving]:
            del self._fdb[mac]
        self._note_mirrors()

    def fdb(self, now_ns: int) -> list[FdbEntry]:
        """The addresses known at `now_ns`, least recently seen first."""
        return [
            FdbEntry(
                mac[:6],
                learnt.port.port.name,
                now_ns - learnt.seen_ns,
                int.from_bytes(mac[6:], "big"),
            )
            for mac, learnt in self._fdb.items()
            if now_ns - learnt.seen_ns < self.ageing_ns
        ]

    def transmit(self, port: Port, frames: Sequence[Frame], now_ns: int) -> None:
        """Take frames coming in from `port` and hand them to the ports they are for.

        Each receiving port gets one batch, in the order of `frames`. Raises
        LocalProtocolError when `port` is not attached or when a port transmits while it
        receives.
        """
        if self._delivering:
            raise LocalProtocolError(
                f"bridge {self.name}: {port.name} transmits inside a port's receive()"
            )
        ingress = self._attached(port)
        for tap in self.taps:
            for frame in frames:
                tap.capture(port.name, Direction.IN, frame, now_ns)
        forward = self._forward_vlans if self._vlan_filtering else self._forward
        busy = forward(ingress, frames, now_ns)
        self._deliver([(out, out.take()) for out in busy], now_ns)

    def _attached(self, port: Port) -> BridgePort:
        found = self.ports.get(port.name)
        if found is None or found.port is not port:
            raise LocalProtocolError(f"bridge {self.name}: port {port.name} is not attached")
        return found

    def _forward(
        self, ingress: BridgePort, frames: Sequence[Frame], now_ns: int
    ) -> list[BridgePort]:
        """Queue each frame on the ports it leaves by; return these, first used first."""
        fdb, ageing_ns, record = self._fdb, self.ageing_ns, self.frames.append
        others: list[BridgePort] | None = None
        busy: list[BridgePort] = []
        received_bytes = forwarded = 0
        head = b""  # both addresses of a frame before, if that went to one port alone
        behind: list[Frame] = []  # what that port has pending
        for frame in frames:
            data = frame.data
            size = len(data)
            received_bytes += size
            if not ETHERNET_HEADER <= size <= FRAME_MAX:
                self.drops[Drop.SIZE] += 1
                continue
            if data[:12] == head:
                record(data)
                forwarded += 1
                behind.append(frame)
                continue
            source = fdb.get(data[6:12])
            if (
                source is None or source.port is not ingress or source.seen_ns != now_ns
            ) and not self._learn(data[6:12], ingress, now_ns):
                self.drops[Drop.SOURCE] += 1
                continue
            known = fdb.get(data[:6])  # group addresses are never learnt
            if known is not None and now_ns - known.seen_ns < ageing_ns:
                out = known.port
                if out is ingress:
                    self.drops[Drop.SAME_PORT] += 1
                    continue
                record(data)
                forwarded += 1
                if not out.pending:
                    busy.append(out)
                out.pending.append(frame)
                if self._mirrors:
                    _queue(frame, [one for one in self._mirrors if one not in (ingress, out)], busy)
                else:
                    head, behind = data[:12], out.pending
                continue
            if data[:5] == _LINK_LOCAL and data[5] < 0x10:
                self.drops[Drop.LINK_LOCAL] += 1
                continue
            record(data)
            self.flooded += 1
            if others is None:
                others = [out for out in self.ports.values() if out is not ingress]
            _queue(frame, others, busy)
        self.forwarded += forwarded
        ingress.received_frames += len(frames)
        ingress.received_bytes += received_bytes
        return busy

    def _forward_vlans(
        self, ingress: BridgePort, frames: Sequence[Frame], now_ns: int
    ) -> list[BridgePort]:
        """The same where tags mean something: addresses are known by VLAN."""
        busy: list[BridgePort] = []
        for frame in frames:
            data = frame.data
            ingress.received_frames += 1
            ingress.received_bytes += len(data)
            if not ETHERNET_HEADER <= len(data) <= FRAME_MAX:
                self.drops[Drop.SIZE] += 1
                continue
            tagged = vlan.admit(data, ingress.vlans)
            if tagged is None:
                self.drops[Drop.VLAN] += 1
                continue
            vid = tagged.vid.to_bytes(2, "big")
            if not self._learn(data[6:12] + vid, ingress, now_ns):
                self.drops[Drop.SOURCE] += 1
                continue
            known = self._fdb.get(data[:6] + vid)
            if known is not None and now_ns - known.seen_ns < self.ageing_ns:
                if known.port is ingress:
                    self.drops[Drop.SAME_PORT] += 1
                    continue
                self.forwarded += 1
                ways = [known.port, *(one for one in self._mirrors if one is not known.port)]
            elif data[:5] == _LINK_LOCAL and data[5] < 0x10:
                self.drops[Drop.LINK_LOCAL] += 1
                continue
            else:
                self.flooded += 1
                ways = list(self.ports.values())
            self.frames.append(data)
            self._leave(frame, tagged, [way for way in ways if way is not ingress], busy)
        return busy

    def _leave(
        self, frame: Frame, tagged: vlan.Tagged, ways: Sequence[BridgePort], busy: list[BridgePort]
    ) -> None:
        """Queue a frame on those of `ways` that are in its VLAN, with its tag or without."""
        forms: dict[bool, Frame] = {}
        for way in ways:
            bare = way.vlans.members.get(tagged.vid)
            if bare is None:
                continue
            if bare not in forms:
                data = tagged.data if bare else vlan.with_tag(tagged)
                forms[bare] = frame if data == frame.data else attrs.evolve(frame, data=data)
            if not way.pending:
                busy.append(way)
            way.pending.append(forms[bare])

    def _learn(self, mac: bytes, ingress: BridgePort, now_ns: int) -> bool:
        """Note where `mac`, with its VLAN behind it, was seen; False if no station can have it.

        Linux drops such frames too (br_handle_frame, is_valid_ether_addr).
        """
        if mac[0] & 1 or mac[:6] == _NO_ADDRESS:
            return False
        fdb = self._fdb
        learnt = fdb.get(mac)
        if learnt is not None:
            learnt.port = ingress
            learnt.seen_ns = now_ns
            fdb.move_to_end(mac)
            return True
        if len(fdb) >= self.fdb_limit:
            fdb.popitem(last=False)
        fdb[mac] = _Learnt(ingress, now_ns)
        return True

    def _deliver(self, batches: list[tuple[BridgePort, list[Frame]]], now_ns: int) -> None:
        self._delivering = True
        try:
            for out, frames in batches:
                port = out.port
                if self.ports.get(port.name) is not out:
                    continue  # detached by a port that received earlier in this loop
                out.sent_frames += len(frames)
                out.sent_bytes += sum([len(frame.data) for frame in frames])
                if not getattr(port, "places", False):
                    self._show(port.name, frames, now_ns)
                port.receive(frames)
        finally:
            self._delivering = False

    def _show(self, name: str, frames: Sequence[Frame], now_ns: int) -> None:
        for tap in self.taps:
            for frame in frames:
                tap.capture(name, Direction.OUT, frame, now_ns)

    def placed(self, port: RingPort, frames: Sequence[Frame], now_ns: int) -> None:
        """What left by `port` is in its guest's slots now, as `queue` and `slot` of each say."""
        if self.taps and self.ports.get(port.name) is not None:
            self._show(port.name, frames, now_ns)

    def lost(self, port: RingPort, count: int) -> None:
        """Frames that left by `port` and found no slots: a capture of it counts them."""
        for tap in self.taps:
            tap.lost(port.name, count)


class Network:
    """The bridges of one host, made when they are first named; each is shown to `watchers` then."""

    def __init__(self) -> None:
        self.bridges: dict[str, Bridge] = {}
        self.watchers: list[Callable[[Bridge], object]] = []

    def bridge(self, name: str) -> Bridge:
        found = self.bridges.get(name)
        if found is None:
            found = self.bridges[name] = Bridge(name)
            for watcher in self.watchers:
                watcher(found)
        return found


def _queue(frame: Frame, outs: Sequence[BridgePort], busy: list[BridgePort]) -> None:
    """Let a frame leave by each of these."""
    for out in outs:
        if not out.pending:
            busy.append(out)
        out.pending.append(frame)
