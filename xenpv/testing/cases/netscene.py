"""The scene of net-backend cases: a raw guest, the backend under test, a station on its bridge.

What a case judges by is what lies on the rings, in the store and in the grant table, and what
comes to the bridge; it never looks into the backend.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.back.netback import NetbackFactory
from xenpv.back.netprofile import PROFILES, Profile
from xenpv.host.image import MemoryImage
from xenpv.host.network import Frame
from xenpv.platform import Platform
from xenpv.testing.access import AccessLog
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netframes import GUEST_MAC, PEER_MAC, frame
from xenpv.testing.cases.netfronts import QueuedFront
from xenpv.testing.cases.netslots import (
    EXTRA_INFO,
    MORE_DATA,
    NULL,
    OKAY,
    RX_RESPONSE,
    SUCCESS,
    TX_REQUEST,
    extra,
    rx,
    tx,
)
from xenpv.testing.cases.suite import CaseResult, Factory
from xenpv.testing.checkers import check_all
from xenpv.testing.ends.backend import BackendWorld, user_net_backend
from xenpv.testing.raw_world import RawWorld
from xenpv.xen.evtchn_port import PortState

QUEUES: Final = 12  # offered by our own backend here: numbers of two digits occur
PATTERN: Final = b"\x5c"  # in every byte of a page that is posted
FIRST_ID: Final = 100
BAD_REF: Final = 4000  # granted to nobody
TASKS_MAX: Final = 2_000  # of one run that a hostile word starts
CONNECTION_KEYS: Final = (
    "multi-queue-num-queues",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "ctrl-ring-ref",
    "event-channel-ctrl",
)
MS: Final = 1_000_000
S: Final = 1_000_000_000


@attrs.define(eq=False)
class Station:
    """The other end of the bridge: it keeps what comes and says nothing by itself."""

    name: str = "station"
    frames: list[Frame] = attrs.field(factory=list)

    def receive(self, frames: Sequence[Frame]) -> None:
        self.frames.extend(frames)

    def take(self) -> list[Frame]:
        """What came since the last call."""
        taken, self.frames = self.frames, []
        return taken


@attrs.frozen
class Slot:
    """An rx response as it was read. `pfn` is the page that was posted in its place."""

    number: int
    offset: int
    flags: int
    status: int
    pfn: int
    raw: bytes


class BackendScene:
    """A raw frontend that is not connected yet, before the backend under test.

    `front` is in the case's hands, `station` at the other end of the bridge.
    """

    def __init__(self, factory: Factory | Netback | None, seed: int) -> None:
        self._features: tuple[str, ...] = ()  # of ours, which no key tells of
        self.world: RawWorld
        if factory is None or isinstance(factory, Netback):
            profile = PROFILES["linux" if factory is None else factory.profile]
            told = {"rate": profile.tx.rated, "hotplug-status": profile.hotplug}
            told |= {"stalls": profile.rx_expires}
            self._features = tuple(name for name, has in told.items() if has)
            self.world = _own_world(seed, profile)
        else:
            self.world = user_net_backend(factory, seed=seed, connect=False)
        self.platform = self.world.platform
        self.guest = self.world.guest
        self.bridge = self.world.bridge
        self.station = Station()
        self.bridge.attach(self.station)
        self.front = QueuedFront(self.guest, 0)
        self._posted: list[dict[int, int]] = []  # of each queue: pfn by index on the rx ring
        self._taken: list[int] = []  # of each queue: index of the next rx response
        self._log: AccessLog | None = None
        self.run()

    @property
    def features(self) -> list[str]:
        """Keys of the backend that are a number other than 0, `N queues` for each number; of ours
        also what no key tells of.
        """
        front = self.front
        found = list(self._features)
        for key in self.guest.xs.directory(front.backend_path):
            text = front.backend_key(key) or ""
            if text.isdecimal() and int(text):
                found.append(key)
        most = front.backend_key("multi-queue-max-queues") or ""
        if most.isdecimal():
            found += [f"{count} queues" for count in range(1, int(most) + 1)]
        return found

    def run(self) -> int:
        """Let everything happen that is due; tasks run."""
        return self.world.run()

    # connections

    def begin(
        self,
        keys: Mapping[str, str | None] | None = None,
        *,
        queues: int = 1,
        split: bool = False,
        control: bool = False,
        start: int = 0,
    ) -> XenbusState:
        """Shape the frontend, write its keys and the state, let it run: the backend's state."""
        front = self.front
        self._forget_keys()
        front.shape(queues=queues, split=split, control=control, start=start)
        front.attach()
        self._posted = [{} for _ in range(queues)]
        self._taken = [start] * queues
        front.announce(keys)
        self.run()
        return front.backend_state

    def _forget_keys(self) -> None:
        """What an earlier connection of another shape left."""
        front = self.front
        for key in self.guest.xs.directory(front.path):
            if key in CONNECTION_KEYS or key.startswith("queue-"):
                front.remove_key(key)

    def connect(
        self,
        keys: Mapping[str, str | None] | None = None,
        *,
        queues: int = 1,
        split: bool = False,
        control: bool = False,
        start: int = 0,
    ) -> None:
        """As `begin`; Wrong if the backend is not Connected."""
        state = self.begin(keys, queues=queues, split=split, control=control, start=start)
        expect(state.name, "CONNECTED", "the backend's state")
        self.station.take()

    def close_front(self) -> None:
        """The frontend goes to Closing and to Closed, each with its answer."""
        for state in (XenbusState.CLOSING, XenbusState.CLOSED):
            self.front.state = state
            self.run()

    def expect_released(self) -> None:
        """Close; Wrong if a ring page is still mapped or the backend is not Closed."""
        self.close_front()
        expect(self.front.backend_state.name, "CLOSED", "the backend's state")
        held = [ref for ref, _ in self.front.rings() if not self.guest.revoke(ref)]
        expect(held, [], "references of ring pages that it holds after the close")

    def expect_usable(self) -> None:
        """Close, connect anew, send a frame. Wrong if that does not work."""
        self.expect_released()
        self.front.state = XenbusState.INITIALISING
        self.run()
        self.connect()
        self.expect_sends()

    def expect_sends(self, queue: int = 0) -> None:
        """A frame goes through. Wrong if it does not."""
        good = frame(60, mark=0x600D)
        answers = self.send([tx(self.page(good), 0, 0, 7, 60)], queue)
        expect(answers, [(7, OKAY)], "the answer to a good frame")
        expect(self.arrived(), [good], "frames on the bridge")

    def again(self) -> None:
        """Close, and be Initialising: for the next round of a case."""
        self.expect_released()
        self.front.state = XenbusState.INITIALISING
        self.run()

    def connect_jumbo(self) -> None:
        """As `connect`, with an MTU of 9000."""
        self.guest.xs.write(f"{self.front.backend_path}/mtu", "9000")
        self.connect()

    # transmit

    def page(self, data: bytes = b"", offset: int = 0, *, readonly: bool = True) -> int:
        """A reference to a fresh page with `data` at `offset`."""
        pfn = self.guest.page()
        if data:
            self.guest.domain.write(pfn, offset, data)
        return self.guest.grant(pfn, readonly=readonly)

    def chain(
        self,
        data: bytes,
        sizes: Sequence[int],
        *,
        flags: int = 0,
        extras: Sequence[tuple[int, bytes]] = (),
    ) -> list[bytes]:
        """Slots of one packet, its data slots of `sizes`, ids FIRST_ID and on.

        `flags` are of the first beside those about the chain; `extras` are (type, body).
        """
        slots: list[bytes] = []
        at = 0
        for index, size in enumerate(sizes):
            mark = MORE_DATA if index < len(sizes) - 1 else 0
            if not index:
                mark |= flags | (EXTRA_INFO if extras else 0)
            gref = self.page(data[at : at + size])
            slots.append(tx(gref, 0, mark, FIRST_ID + index, size if index else len(data)))
            if not index:
                slots += [extra(kind, body, more=at < len(extras) - 1)
                          for at, (kind, body) in enumerate(extras)]  # fmt: skip
            at += size
        return slots

    def push(self, slots: Iterable[bytes], queue: int = 0) -> None:
        """Publish slots and notify."""
        packed = [one.ljust(TX_REQUEST.size, b"\0") for one in slots]
        ring = self.front.queues[queue]
        ring.tx.push(b"".join(packed), len(packed))
        self.front.send_event(ring.tx_channel)

    def send(self, slots: Iterable[bytes], queue: int = 0) -> list[tuple[int, int]]:
        """Publish slots and let them run: (id, status) of every response."""
        self.push(slots, queue)
        self.run()
        return self.front.tx_responses(queue)

    def arrived(self) -> list[bytes]:
        """Bytes of what came to the station since the last call."""
        return [one.data for one in self.station.take()]

    def expect_answers(self, slots: Sequence[bytes], wanted: Sequence[int], nulls: int = 0) -> None:
        """Send: each id of FIRST_ID and on has its status, and `nulls` more are NULL, in the
        slots behind the first. What is right of a packet's answers whatever their order.
        """
        answers = self.send(slots)
        statuses = [status for _, status in answers]
        expect(statuses.count(NULL), nulls, "NULL responses")
        told = sorted((number, status) for number, status in answers if status != NULL)
        expect(told, [(FIRST_ID + at, one) for at, one in enumerate(wanted)], "responses")
        if nulls:
            first = answers.index((FIRST_ID, wanted[0]))
            behind = statuses[first + 1 : first + 1 + nulls]
            expect(behind, [NULL] * nulls, "responses behind the first slot's")

    def expect_refused(self, slots: Sequence[bytes]) -> None:
        """Send: nothing comes to the bridge and no slot is OKAY; then it can be closed and used.

        Whether they are answered at all is the backend's: Linux' answers none of a vif that it
        disables.
        """
        answers = self.send(slots)
        self.expect_nothing_passed(answers, len(slots))

    def expect_nothing_passed(self, answers: Sequence[tuple[int, int]], most: int) -> None:
        """As `expect_refused`, of what was sent and answered already."""
        holds(len(answers) <= most, f"{len(answers)} responses to {most} slots")
        expect([one for one in answers if one[1] == OKAY], [], "OKAY responses")
        expect(self.arrived(), [], "frames on the bridge")
        self.expect_usable()

    # receive

    def post(
        self,
        count: int = 1,
        queue: int = 0,
        *,
        refs: Sequence[int] | None = None,
        notify: bool = True,
    ) -> list[int]:
        """Post `count` pages of PATTERN, or of `refs`; their pfns. Ids are those of `rx_id`."""
        ring = self.front.queues[queue]
        pfns = [self.guest.page() for _ in range(count)] if refs is None else [0] * count
        first = ring.rx.ring.req_prod
        requests = []
        for at, pfn in enumerate(pfns):
            index = first + at & 0xFFFFFFFF
            if refs is None:
                self.guest.domain.write(pfn, 0, PATTERN * 4096)
            gref = self.guest.grant(pfn) if refs is None else refs[at]
            requests.append(rx(rx_id(index), gref))
            self._posted[queue][index] = pfn
        ring.rx.push(b"".join(requests), count)
        if notify:
            self.front.send_event(ring.rx_channel)
        return pfns

    def waiting(self, queue: int = 0) -> int:
        """Slots that are posted and not answered, as far as responses were read."""
        return len(self._posted[queue])

    def deliver(self, *frames: bytes | Frame, run: bool = True) -> None:
        """Frames from the station to the guest. Without `run` time stands still."""
        made = [one if isinstance(one, Frame) else Frame(one) for one in frames]
        self.bridge.transmit(self.station, made, self.platform.loop.now)
        if run:
            self.run()
        else:
            self.platform.loop.advance(0)

    def received(self, queue: int = 0) -> list[Slot]:
        """Rx responses of a queue since the last call. Wrong if more than were posted."""
        slots = []
        for raw in self.front.queues[queue].rx.take():
            index = self._taken[queue]
            self._taken[queue] = index + 1 & 0xFFFFFFFF
            number, offset, flags, status = RX_RESPONSE.unpack(raw)
            pfn = self._posted[queue].pop(index)
            slots.append(Slot(number, offset, flags, status, pfn, raw))
        return slots

    def packets(self, queue: int = 0) -> list[Packet]:
        """Rx responses since the last call, put together. Wrong: half a packet."""
        slots = self.received(queue)
        found = []
        while slots:
            found.append(self._packet(slots))
        return found

    def _packet(self, slots: list[Slot]) -> Packet:
        head = slots.pop(0)
        extras = []
        more = bool(head.flags & EXTRA_INFO)
        while more:
            holds(slots, "an extra that is not there yet")
            raw = slots.pop(0).raw
            extras.append(raw)
            more = bool(raw[1] & 1)
        data = [head]
        while data[-1].flags & MORE_DATA:
            holds(slots, "a packet of which a slot is not there yet")
            data.append(slots.pop(0))
        read = self.guest.domain.read
        parts = [read(one.pfn, one.offset, max(0, one.status)) for one in data]
        return Packet(data, extras, b"".join(parts))

    # control ring

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        """(status, data) of one control request. Wrong: no answer, or of something else."""
        answers = self.front.ask(kind, *data)
        heads = [one[:2] for one in answers]
        expect(heads, [(self.front.asked, kind)], "id and type of control responses")
        return answers[0][2], answers[0][3]

    def expect_success(self, kind: int, *data: int) -> int:
        """The data of a control request that succeeds."""
        status, value = self.ask(kind, *data)
        expect(status, SUCCESS, f"status of control request {kind}")
        return value

    def expect_no_success(self, kind: int, *data: int) -> None:
        """A control request that is answered with any other status."""
        status, _ = self.ask(kind, *data)
        holds(status != SUCCESS, f"control request {kind} of {data} succeeded")

    # what holds of memory

    def watch_fetches(self) -> None:
        """From here on note what is fetched twice (XSA-155)."""
        self._log = AccessLog(self.platform)
        self._log.open()

    def expect_single_fetches(self) -> None:
        """Wrong: the backend read a byte of a slot twice in one delivery."""
        assert self._log is not None, "watch_fetches comes first"
        self.run()
        self._log.close()
        backend = self.front.guest.platform.dom0.domid
        twice = [one for one in self._log.double_fetches() if one.actor == backend and one.in_slot]
        expect([str(one) for one in twice], [], "bytes of slots fetched twice")

    # the suite's side

    def finish(self) -> None:
        self.run()
        check_all(self.platform, hostile=(self.guest.domid,))
        self._hang_up()
        check_all(self.platform, hostile=(self.guest.domid,))
        if isinstance(self.world, BackendWorld):
            self.world.finish()  # what a user's driver leaves behind

    def _hang_up(self) -> None:
        """The frontend closes, if it is there still: nothing of its rings may be held then."""
        front = self.front
        if front.read_key("state") is not None:
            self.close_front()
        held = [ref for ref, pfn in front.made if not self.guest.revoke(ref)]
        expect(held, [], "references of ring pages that it holds after the end")
        ports = self.guest.domain.evtchn.ports
        bound = [
            one.port
            for one in front.opened
            if one.active and ports[one.port].state is PortState.INTERDOMAIN
        ]
        expect(bound, [], "ports that it holds after the end")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self.world.close()


@attrs.frozen
class Packet:
    """A packet put together from rx responses; `extras` are 8 bytes each."""

    slots: list[Slot]
    extras: list[bytes]
    data: bytes

    @property
    def flags(self) -> int:
        """Of its first slot."""
        return self.slots[0].flags


def rx_id(index: int) -> int:
    """The id that `post` gives to a slot."""
    return 0xA000 + index & 0xFFFF


def inbound(size: int, mark: int = 0) -> bytes:
    """A frame to the guest."""
    return frame(size, source=PEER_MAC, destination=GUEST_MAC, mark=mark)


@attrs.frozen
class Netback:
    """Our own backend as the one under test, in another of its profiles."""

    profile: str = "linux"


def _own_world(seed: int, profile: Profile) -> RawWorld:
    """Our netback. Linux' has more queues here than Linux offers by itself."""
    platform = Platform(seed=seed, dom0_vcpus=QUEUES)
    try:
        if profile.multi_queue:
            profile = attrs.evolve(profile, queues_max=QUEUES)
        drivers = platform.backends.drivers
        platform.backends.drivers = {
            **drivers,
            "vif": NetbackFactory(platform.network, lambda _domid, _devid: profile),
        }
        return RawWorld(platform, MemoryImage(bytearray(512)), "xenbr0")
    except BaseException:
        platform.close()
        raise


def check_net_backend(
    factory: Factory | Netback | None = None,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    seed: int = 0,
) -> list[CaseResult]:
    """Every case of the suite "net-backend" against what `factory(end, port)` makes; None: ours.

    Raises CasesFailed; LocalProtocolError for an unknown id.
    """
    from xenpv.testing.cases import suite

    end: Any = factory
    return suite("net-backend").check(end, only=only, without=without, seed=seed)
