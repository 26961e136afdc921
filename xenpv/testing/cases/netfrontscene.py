"""The scene of net-frontend cases: the frontend under test on a raw backend.

A program above it sends frames and looks at those that came; all else that a case judges by is
what lies on the rings, in the store and in the grant table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device, Driver
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.platform import Platform, Vif
from xenpv.testing.access import AccessLog
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netbacks import QueuedBack, Sent
from xenpv.testing.cases.netframes import GUEST_MAC, PEER_MAC, frame
from xenpv.testing.cases.netslots import MORE_DATA, rx_response
from xenpv.testing.cases.suite import CaseResult, Factory
from xenpv.testing.checkers import check_all
from xenpv.testing.ends.frontend import UserNetWorld, user_net_frontend
from xenpv.testing.world import World

MEMORY_MIB: Final = 16
VCPUS: Final = 4
TASKS_MAX: Final = 5_000
S: Final = 1_000_000_000
OID_802_3_MULTICAST_LIST: Final = 0x01010103
OID_OFFLOAD_ENCAPSULATION: Final = 0x0101010A
# NDIS_OFFLOAD_ENCAPSULATION: header, then enabled, type (802.3) and header size for v4 and v6.
ENCAPSULATION: Final = struct.pack("<BBH3I3I", 0xA8, 1, 28, 1, 2, 14, 1, 2, 14)
STAIN: Final = b"\x5c"
STAINED: Final = 800  # pages at most
# What an honest backend offers, unless a case says otherwise.
FEATURES: Final = {"feature-sg": "1", "feature-rx-copy": "1"}
EVERYTHING: Final = {
    **FEATURES,
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
    "feature-split-event-channels": "1",
    "multi-queue-max-queues": str(VCPUS),
    "feature-ctrl-ring": "1",
}


class OwnWorld(World):
    """A Windows guest with one interface, whose backends `vifs` are raw."""

    def __init__(self, seed: int, make: Callable[[Device], QueuedBack]) -> None:
        self.platform = Platform(seed=seed)
        self.vifs: list[QueuedBack] = []
        self._make = make
        drivers = self.platform.backends.drivers
        self.platform.backends.drivers = {**drivers, "vif": self._driver}
        self.guest = self.platform.create(
            name="guest", memory_mib=MEMORY_MIB, vcpus=VCPUS, vifs=[Vif(mac=GUEST_MAC.hex(":"))]
        )
        self.domain = self.guest.created.domain

    def _driver(self, device: Device) -> Driver:
        self.vifs.append(self._make(device))
        return self.vifs[-1]

    @property
    def vif(self) -> QueuedBack:
        """The interface's backend, the newest."""
        return self.vifs[-1]

    @property
    def app(self) -> OwnWorld:
        """What a program above the interface does: `send`, and `received`."""
        return self

    @property
    def _adapter(self) -> Adapter | None:
        nets = self.guest.nets
        return nets[0] if nets else None

    @property
    def received(self) -> Sequence[bytes]:
        adapter = self._adapter
        return list(adapter.received) if adapter is not None else []

    def send(self, data: bytes) -> None:
        adapter = self._adapter
        if adapter is not None and adapter.link_up:
            adapter.send(data)

    def join(self, *groups: bytes) -> None:
        """The program's list of groups (OID_802_3_MULTICAST_LIST)."""
        adapter = self.guest.nets[0]
        adapter.set(OID_802_3_MULTICAST_LIST, b"".join(groups))

    def send_large(self, data: bytes, mss: int, *, is_ipv6: bool = False) -> bool:
        """A TCP packet whose checksum, and segments if `mss` is not 0, are left to the interface;
        whether the interface took it.
        """
        adapter = self.guest.nets[0]
        adapter.set(OID_OFFLOAD_ENCAPSULATION, ENCAPSULATION)
        kind = ChecksumRequest.IS_IPV6 if is_ipv6 else ChecksumRequest.IS_IPV4
        whole = NetBufferList(
            (data,), checksum=kind | ChecksumRequest.TCP, mss=mss, is_ipv6=is_ipv6
        )
        adapter.send_lists([whole])
        return whole.pending > 0

    def boot(self) -> None:
        """Let the guest come as far as it does."""
        self.platform.toolstack.unpause(self.guest.created)
        self.run()


class FrontendScene:
    """A frontend that is not started yet. `back` is the raw backend, in the case's hands."""

    def __init__(self, factory: Factory | None, seed: int) -> None:
        self._factory = factory
        self._seed = seed
        self.world: Any = None
        self._log: AccessLog | None = None
        self._looked = 0
        self._gone = False  # the device was taken away

    @property
    def features(self) -> Collection[str]:
        """What the frontend makes of a backend that offers everything, by these names. `groups`
        and `large`: a program can ask ours for them, and no protocol of a user's frontend.
        """
        self.connect(EVERYTHING)
        key = self.back.frontend_key
        found = {
            "sg": key("feature-sg") == "1",
            "gso": key("feature-gso-tcpv4") == "1",
            "split": bool(self.back.queues[0].ports[1:]),
            "queues": len(self.back.queues) > 1,
            "control": self.back.ctrl is not None,
            "groups": isinstance(self.world, OwnWorld),
            "large": isinstance(self.world, OwnWorld),
        }
        self._drop()
        return [name for name, has in found.items() if has]

    # life

    def begin(
        self,
        features: Mapping[str, str] = FEATURES,
        prepare: Callable[[QueuedBack], object] | None = None,
        *,
        stained: bool = False,
        waiting: Callable[[], object] | None = None,
    ) -> None:
        """Start the frontend on a backend with these features; `prepare` changes the backend
        before it is probed, `waiting` is called when it waits for the frontend. `stained`: the
        guest's free pages hold STAIN.
        """
        self._drop()

        def make(device: Device) -> QueuedBack:
            back = QueuedBack(device)
            back.features = dict(features)
            if prepare is not None:
                prepare(back)
            return back

        if self._factory is None:
            self.world = OwnWorld(self._seed, make)
        else:
            self.world = user_net_frontend(self._factory, seed=self._seed, connect=False, vif=make)
        if stained:
            self._stain()
        if waiting is not None:
            self.run()
            waiting()
        self.world.boot()

    def _stain(self) -> None:
        """What lies in memory that is nobody's now."""
        domain = self.domain
        count = min(STAINED, domain.pages.free_pages)
        pfns = [domain.pages.alloc(1) for _ in range(count)]
        for pfn in pfns:
            domain.write(pfn, 0, STAIN * 4096)
        for pfn in pfns:
            domain.pages.free(pfn)

    def connect(
        self,
        features: Mapping[str, str] = FEATURES,
        prepare: Callable[[QueuedBack], object] | None = None,
        *,
        stained: bool = False,
    ) -> None:
        """As `begin`. Wrong if it does not connect. What it sends by itself is answered."""
        self.begin(features, prepare, stained=stained)
        expect(self.state, State.CONNECTED, "the frontend's state")
        holds(self.back.connected, "the backend has no rings")
        self.answer_all()

    @property
    def back(self) -> QueuedBack:
        found: QueuedBack = self.world.vif
        return found

    @property
    def domain(self) -> Any:
        """The frontend's domain."""
        return self.world.domain

    @property
    def state(self) -> State:
        """What the frontend's `state` says."""
        return self.back.device.frontend_state if self.world.vifs else State.UNKNOWN

    def run(self) -> int:
        """Let everything happen that is due; tasks run."""
        ran: int = self.world.run()
        return ran

    # transmit

    def send(self, *frames: bytes) -> list[Sent]:
        """Frames from the program, and what lies on the rings then."""
        for data in frames:
            self.world.app.send(data)
        self.run()
        return self.take()

    def take(self) -> list[Sent]:
        """Packets of all tx rings since the last call."""
        return [one for at in range(len(self.back.queues)) for one in self.back.take(at)]

    def answer(self, *sent: Sent) -> None:
        """OKAY to all slots of these packets."""
        for one in sent:
            self.back.respond(*one.answers, queue=one.queue)
        self.run()

    def answer_all(self) -> list[bytes]:
        """Read and answer all that is sent, until there is no more of it."""
        found = []
        while sent := self.take():
            found += [self.back.bytes_of(one) for one in sent]
            self.answer(*sent)
        return found

    # receive

    def deliver(
        self,
        data: bytes,
        *,
        sizes: Sequence[int] = (),
        flags: int = 0,
        extras: Sequence[bytes] = (),
        offset: int = 0,
        queue: int = 0,
    ) -> None:
        """A frame in slots of `sizes`; `extras` of 8 bytes come behind the first of them."""
        back = self.back
        posted = back.take_slots(queue)
        parts = sizes or [len(data)]
        holds(len(posted) >= len(parts) + len(extras), "the frontend has posted no pages")
        responses = []
        at = 0
        for index, size in enumerate(parts):
            number, gref = posted.pop(0)
            back.fill(gref, data[at : at + size], offset)
            at += size
            told = (flags | (8 if extras else 0)) if not index else 0
            told |= MORE_DATA if index < len(parts) - 1 else 0
            responses.append(rx_response(number, size, offset=offset, flags=told))
            if not index:
                responses += [one[:8] for one in extras]
                del posted[: len(extras)]
        back.publish(*responses, queue=queue)
        self.run()

    def respond(self, *responses: tuple[int, int, int], queue: int = 0) -> None:
        """Answer the next posted slots with (status, flags, offset); their pages are left."""
        back = self.back
        posted = back.take_slots(queue)
        packed = []
        for status, flags, offset in responses:
            number, _ = posted.pop(0)
            packed.append(rx_response(number, status, offset=offset, flags=flags))
        back.publish(*packed, queue=queue)
        self.run()

    def received(self) -> list[bytes]:
        """Frames that the program got since the last call."""
        everything = list(self.world.app.received)
        new = everything[self._looked :]
        self._looked = len(everything)
        return new

    # claims

    def expect_works(self, queue: int = 0) -> None:
        """A frame each way. Wrong if one is lost."""
        data = inbound(200, 0x600D)
        self.received()
        self.deliver(data, queue=queue)
        expect(self.received(), [data], "frames that came to the program")
        self.expect_sends()

    def expect_sends(self) -> None:
        """A frame of the program comes to the wire."""
        data = frame(200, mark=0x5E2D)
        self.world.app.send(data)
        self.run()
        expect(self.answer_all(), [data], "frames on the wire")

    def expect_survives(self) -> None:
        """Nothing came to the program, and the frontend goes on or has given the device up; the
        backend's close is answered, and nothing stays granted of the rings.
        """
        expect(self.received(), [], "frames that came to the program")
        self.expect_closes()

    def expect_closes(self) -> None:
        """The toolstack takes the device away (`online` 0, then Closing; the directories when
        both are done): the frontend closes, and takes the references of its rings back. It is
        the scene's end.
        """
        back = self.back
        grefs = self.ring_refs()
        back.write_key("online", "0")
        back.write_key("state", str(int(State.CLOSING)))
        self.run()
        holds(
            self.state in (State.CLOSING, State.CLOSED, State.UNKNOWN),
            f"the frontend is {self.state.name} after the backend's close",
        )
        back.detach()
        back.write_key("state", str(int(State.CLOSED)))
        self.run()
        self.expect_gone(grefs)

    def expect_gone(self, grefs: Sequence[int]) -> None:
        """Take the directories away: none of these references leads anywhere then."""
        back, self._gone = self.back, True
        for path in (back.device.frontend, back.device.path):
            self.world.platform.toolstack.xs.rm(path)
        self.run()
        back.detach()
        self._finish_user()
        left = [gref for gref in grefs if back.is_granted(gref)]
        expect(left, [], "references of its rings after the close")

    def ring_refs(self) -> list[int]:
        """References of the ring pages, as the store has them."""
        number = self.back.device.frontend_number
        count = number("multi-queue-num-queues", 1)
        homes = [f"queue-{at}/" for at in range(count)] if count > 1 else [""]
        names = [home + name for home in homes for name in ("tx-ring-ref", "rx-ring-ref")]
        refs = [number(name, 0) for name in [*names, "ctrl-ring-ref"]]
        return [ref for ref in refs if ref]

    @contextmanager
    def single_fetches(self) -> Iterator[None]:
        """Wrong: in it the frontend reads a byte of a slot twice in one delivery (XSA-155)."""
        with AccessLog(self.world.platform) as log:
            yield
        domid = self.domain.domid
        twice = [one for one in log.double_fetches() if one.actor == domid and one.in_slot]
        expect([str(one) for one in twice], [], "bytes of slots fetched twice")

    # the suite's side

    def finish(self) -> None:
        self.run()
        check_all(self.world.platform, hostile=(0,))
        if not self._gone:
            self.expect_closes()
            check_all(self.world.platform, hostile=(0,))

    def _finish_user(self) -> None:
        """What a user's driver leaves behind is its failure."""
        if isinstance(self.world, UserNetWorld):
            self.world.finish()

    def _drop(self) -> None:
        world, self.world = self.world, None
        self._looked = 0
        self._gone = False
        if world is not None:
            world.close()

    def close(self) -> None:
        self._drop()


def inbound(size: int, mark: int = 0) -> bytes:
    """A frame to the guest."""
    return frame(size, source=PEER_MAC, destination=GUEST_MAC, mark=mark)


def check_net_frontend(
    factory: Factory | None = None,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    seed: int = 0,
) -> list[CaseResult]:
    """Every case of the suite "net-frontend" against what `factory(end, receive)` makes; None:
    ours.

    Raises CasesFailed; LocalProtocolError for an unknown id.
    """
    from xenpv.testing.cases import suite

    return suite("net-frontend").check(factory, only=only, without=without, seed=seed)
