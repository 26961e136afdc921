"""Cases of event channels in the FIFO ABI, and of a guest's own event channels (XenBus' EVTCHN)."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.testing.cases.claims import Wrong, expect
from xenpv.testing.cases.evtchn import CLOSED, SUITE, TIMER, UNBOUND
from xenpv.testing.cases.machinescene import Machine, MachineScene

FIFO: Final = "xen/common/event_fifo.c"
EVTCHN_C: Final = "win-xenbus src/xenbus/evtchn.c"
PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK_BITS: Final = 17
DEFAULT_PRIORITY: Final = 7
CONTROL, ARRAY = 0, 1  # pages of the guest: Machine.page
NO_RAM: Final = 0x8000


class Fifo:
    """The pages of the FIFO ABI of one domain: a control block for each vcpu in the first."""

    def __init__(self, machine: Machine, *, vcpus: int = 1, array: bool = True) -> None:
        self.machine = machine
        for vcpu in range(vcpus):
            done = machine.init_control(machine.page(CONTROL), 72 * vcpu, vcpu)
            expect(done, LINK_BITS, f"init_control of vcpu {vcpu}")
        if array:
            expect(machine.expand_array(machine.page(ARRAY)), 0, "expand_array")

    def _load(self, page: int, offset: int) -> int:
        data = self.machine.domain.read(self.machine.page(page), offset, 4)
        return int.from_bytes(data, "little")

    def _store(self, page: int, offset: int, value: int) -> None:
        self.machine.domain.write(self.machine.page(page), offset, value.to_bytes(4, "little"))

    def word(self, port: int) -> int:
        return self._load(ARRAY, 4 * port)

    def set_word(self, port: int, value: int) -> None:
        self._store(ARRAY, 4 * port, value)

    def ready(self, vcpu: int = 0) -> int:
        """One bit for each priority."""
        return self._load(CONTROL, 72 * vcpu)

    def head(self, priority: int = DEFAULT_PRIORITY, vcpu: int = 0) -> int:
        return self._load(CONTROL, 72 * vcpu + 8 + 4 * priority)

    def consume(self, priority: int = DEFAULT_PRIORITY) -> list[int]:
        """As a kernel: the ports of one queue, unlinked, their events taken."""
        self._store(CONTROL, 0, self.ready() & ~(1 << priority))
        self.machine.take()
        port = self.head(priority)
        found: list[int] = []
        while port:
            if len(found) > 64:
                raise Wrong(f"the queue of priority {priority} has no end: {found}")
            word = self.word(port)
            self.set_word(port, word & ~(PENDING | LINKED | (1 << LINK_BITS) - 1))
            if word & PENDING and not word & MASKED:
                found.append(port)
            port = word & (1 << LINK_BITS) - 1
        return found


def _pairs(s: MachineScene, count: int) -> list[tuple[int, int]]:
    return [s.pair() for _ in range(count)]


@SUITE.case(
    "EVT-030",
    "events queue in their order; the first says that the queue is ready",
    source=f"{FIFO}, evtchn_fifo_set_pending",
    expected="head is the first port, words link the rest, one upcall",
    hostile=False,
)
def _queue(s: MachineScene) -> None:
    pairs = _pairs(s, 4)
    fifo = Fifo(s.guest)
    for index in (2, 0, 3):
        s.dom0.send(pairs[index][1])
    expect(fifo.ready(), 1 << DEFAULT_PRIORITY, "ready")
    expect(s.guest.upcall(), True, "upcall")
    expect(fifo.head(), pairs[2][0], "head")
    s.dom0.send(pairs[0][1])  # linked already
    expect(fifo.consume(), [pairs[index][0] for index in (2, 0, 3)], "the queue")
    s.dom0.send(pairs[1][1])
    expect((fifo.head(), fifo.consume()), (pairs[1][0], [pairs[1][0]]), "the next")


@SUITE.case(
    "EVT-031",
    "priorities have queues of their own",
    source=f"{FIFO}, evtchn_fifo_set_priority",
    expected="the ready bit and head of that priority; EINVAL above 15, ENOSYS in the 2-level ABI",
)
def _priority(s: MachineScene) -> None:
    (near, far), (other, beside) = _pairs(s, 2)
    expect(s.guest.set_priority(near, 3), "ENOSYS", "set_priority in the 2-level ABI")
    fifo = Fifo(s.guest)
    expect(s.guest.set_priority(near, 3), 0, "set_priority")
    for port, priority, error in (
        (near, 16, "EINVAL"), (near, 0xFFFFFFFF, "EINVAL"), (9999, 1, "EINVAL"),
        (0, 1, "EACCES"), (40, 1, "EACCES"),
    ):  # fmt: skip
        expect(s.guest.set_priority(port, priority), error, f"port {port}, priority {priority}")
    s.dom0.send(far)
    s.dom0.send(beside)
    expect(fifo.ready(), 1 << 3 | 1 << DEFAULT_PRIORITY, "ready")
    expect((fifo.consume(3), fifo.consume()), ([near], [other]), "the queues")


@SUITE.case(
    "EVT-032",
    "an event for a vcpu that has no control block",
    source="XSA-107",
    expected="it is dropped; the word says PENDING, nobody is told, nothing crashes",
)
def _no_block(s: MachineScene) -> None:
    ipi = int(s.guest.bind_ipi(1))
    fifo = Fifo(s.guest)
    expect(s.guest.send(ipi), 0, "send")
    expect((fifo.word(ipi), s.guest.upcall(1)), (PENDING, False), "word and upcall")
    near, far = s.pair()
    s.dom0.send(far)
    expect(fifo.consume(), [near], "an event of vcpu 0")


@SUITE.case(
    "EVT-033",
    "init_control that fails leaves nothing behind",
    source="XSA-188",
    expected="EINVAL, ENOENT; the 2-level ABI works on, a good one succeeds later",
)
def _init_control(s: MachineScene) -> None:
    near, far = s.pair()
    guest = s.guest
    page = guest.page(CONTROL)
    for gfn, offset, vcpu, error in (
        (NO_RAM, 0, 0, "EINVAL"), (1 << 40, 0, 0, "EINVAL"), (page, 4028, 0, "EINVAL"),
        (page, 4096, 0, "EINVAL"), (page, 4, 0, "EINVAL"), (page, 0xFFFFFFF8, 0, "EINVAL"),
        (page, 0, 2, "ENOENT"), (page, 0, 0xFFFFFFFF, "ENOENT"),
    ):  # fmt: skip
        done = guest.init_control(gfn, offset, vcpu)
        expect(done, error, f"init_control of {gfn:#x}, {offset:#x}, vcpu {vcpu:#x}")
    expect(guest.expand_array(guest.page(ARRAY)), "EOPNOTSUPP", "expand_array")
    guest.unmask_all()
    s.dom0.send(far)
    expect((guest.pending(near), guest.upcall()), (True, True), "an event in the 2-level ABI")
    guest.take(near)
    fifo = Fifo(guest)
    expect(guest.init_control(page, 512, 0), "EINVAL", "init_control of a vcpu that has one")
    s.dom0.send(far)
    expect(fifo.consume(), [near], "an event in the FIFO ABI")


@SUITE.case(
    "EVT-034",
    "events of before the pages",
    source=f"XSA-359; {FIFO}, evtchn_fifo_expand_array, setup_ports",
    expected="what was pending in either ABI is queued once the array is there",
    hostile=False,
)
def _saved(s: MachineScene) -> None:
    (first, far), (second, beside) = _pairs(s, 2)
    s.dom0.send(far)
    fifo = Fifo(s.guest, array=False)
    s.dom0.send(beside)
    expect(fifo.ready(), 0, "ready without an array")
    expect(s.guest.expand_array(s.guest.page(ARRAY)), 0, "expand_array")
    expect(sorted(fifo.consume()), [first, second], "what was saved")


@SUITE.case(
    "EVT-035",
    "the array is bounded",
    source=f"{FIFO}, add_page_to_event_array",
    expected="128 pages, then ENOSPC; EINVAL for what is no RAM",
)
def _array(s: MachineScene) -> None:
    fifo = Fifo(s.guest)
    expect(s.guest.expand_array(NO_RAM), "EINVAL", "expand_array of no RAM")
    for number in range(1, 128):
        expect(s.guest.expand_array(s.guest.page(ARRAY + number)), 0, f"page {number}")
    expect(s.guest.expand_array(s.guest.page(130)), "ENOSPC", "page 128")
    near, far = s.pair()
    s.dom0.send(far)
    expect(fifo.consume(), [near], "an event")


@SUITE.case(
    "EVT-036",
    "expand_array after a reset",
    source="XSA-505",
    expected="EOPNOTSUPP: the ABI is the 2-level one again; events of before are gone",
)
def _expand_after_reset(s: MachineScene) -> None:
    near, far = s.pair()
    Fifo(s.guest, array=False)
    s.dom0.send(far)
    expect(s.guest.reset(), 0, "reset")
    expect(s.guest.expand_array(s.guest.page(ARRAY)), "EOPNOTSUPP", "expand_array")
    expect((s.guest.status(near), s.dom0.status(far)), (CLOSED, UNBOUND), "status")
    fifo = Fifo(s.guest)
    expect((fifo.ready(), fifo.word(near)), (0, 0), "the new ABI")


@SUITE.case(
    "EVT-037",
    "a port stays valid once it was",
    source="XSA-338",
    expected="after a reset to the 2-level ABI a port beyond its end is closed, not EINVAL",
)
def _valid(s: MachineScene) -> None:
    guest = s.domain(max_event_channels=10_000)
    Fifo(guest)
    for number in range(1, 5):
        guest.expand_array(guest.page(ARRAY + number))
    while guest.alloc_unbound(0) != 4200:
        pass
    far = int(s.dom0.bind_interdomain(guest.domid, 4200))
    expect(guest.reset(), 0, "reset")
    expect(guest.status(4200), CLOSED, "status of port 4200")
    expect(guest.close(4200), "EINVAL", "close of it")
    expect(guest.unmask(4200), 0, "unmask of it")
    expect(s.dom0.send(far), 0, "send of the other end")
    expect(guest.alloc_unbound(0), 1, "the next port")


@SUITE.case(
    "EVT-038",
    "ports that are bound while a reset runs keep the ABI they were bound in",
    source="XSA-344",
    expected="EAGAIN, and the ABI stays; the next reset does all",
)
def _bound_meanwhile(s: MachineScene) -> None:
    _pairs(s, 3)
    Fifo(s.guest)
    made: list[Any] = []

    def race(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        # The word of the last port.
        if kind & lib.ACCESS_ATOMIC and offset == 4 * 3 and not made:
            made.append("")
            made[0] = s.guest.alloc_unbound(0)

    with s.meanwhile(race):
        done = s.guest.reset()
    expect((done, made), ("EAGAIN", [1]), "reset, and the port that was bound within it")
    expect(s.guest.set_priority(1, 3), 0, "set_priority: it is the FIFO ABI")
    expect(s.guest.reset(), 0, "reset again")
    expect(s.guest.set_priority(1, 3), "ENOSYS", "set_priority: it is the 2-level ABI")


@SUITE.case(
    "EVT-039",
    "a guest links its words in circles and beyond the array",
    source=f"{FIFO}, evtchn_fifo_word_from_port; the words are the guest's to write",
    expected="no event of another domain is touched; its own come again when it mends them",
)
def _links(s: MachineScene) -> None:
    (near, far), (second, beside) = _pairs(s, 2)
    fifo = Fifo(s.guest)
    theirs = int(s.other.alloc_unbound(0))
    apart = int(s.dom0.bind_interdomain(s.other.domid, theirs))
    s.other.unmask_all()
    for word in (0xFFFFFFFF, LINKED | near, LINKED | 0x1FFFF, BUSY | LINKED | second, MASKED | 5):
        fifo.set_word(near, word)
        fifo.set_word(second, word)
        for port in (far, beside, apart):
            expect(s.dom0.send(port), 0, f"send while words are {word:#x}")
        expect(s.other.pending(theirs), True, "the other domain's event")
        s.other.take(theirs)
    for port in (near, second):
        fifo.set_word(port, 0)
    fifo.consume()
    s.dom0.send(far)
    s.dom0.send(beside)
    expect(sorted(fifo.consume()), [near, second], "its own, mended")


@SUITE.case(
    "EVT-040",
    "a port that is closed while its event is linked",
    source=f"{FIFO}, evtchn_fifo_is_busy",
    expected="its number is not given out until the guest has unlinked it",
)
def _busy(s: MachineScene) -> None:
    near, far = s.pair()
    fifo = Fifo(s.guest)
    s.dom0.send(far)
    expect(s.guest.close(near), 0, "close")
    expect(fifo.word(near) & PENDING, 0, "PENDING of the closed port")
    expect(s.guest.alloc_unbound(0), near + 1, "the next port while it is linked")
    expect(fifo.consume(), [], "events of the queue")
    expect(s.guest.alloc_unbound(0), near, "the next port then")


@SUITE.case(
    "EVT-041",
    "an event is linked before the guest can be told",
    source="XSA-358",
    expected="word, head, ready and at last the upcall are written in this order",
    hostile=False,
)
def _order(s: MachineScene) -> None:
    near, far = s.pair()
    Fifo(s.guest)
    seen: list[tuple[int, int]] = []

    def note(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        if s.is_write(kind):
            seen.append((frame, offset))

    with s.meanwhile(note):
        s.dom0.send(far)
    offsets = [offset for _, offset in seen[-5:]]
    expect(offsets, [4 * near, 4 * near, 8 + 4 * DEFAULT_PRIORITY, 0, 0], "offsets written")
    expect(seen[-2][0] == seen[-3][0], True, "ready is in the page of head")
    expect(seen[-1][0] == seen[-2][0], False, "the upcall is in another")


@SUITE.case(
    "EVT-042",
    "a masked port in the FIFO ABI",
    source=f"{FIFO}, evtchn_fifo_unmask",
    expected="PENDING alone while it is masked; unmask links it",
    hostile=False,
)
def _fifo_masked(s: MachineScene) -> None:
    near, far = s.pair()
    fifo = Fifo(s.guest)
    fifo.set_word(near, MASKED)
    s.dom0.send(far)
    found = (fifo.word(near), fifo.ready(), s.guest.upcall())
    expect(found, (PENDING | MASKED, 0, False), "while it is masked")
    expect(s.guest.unmask(near), 0, "unmask")
    expect(fifo.consume(), [near], "the queue")


# a guest's own event channels


class Channels:
    """XenBus' EVTCHN of the guest, and dom0 as its peer; `heard` are callbacks in order."""

    def __init__(
        self, s: MachineScene, count: int = 1, *, mask: bool = False, fifo: bool = False
    ) -> None:
        self.s = s
        self.evtchn = EvtchnInterface(s.guest.domain, fifo=fifo)
        self.heard: list[int] = []
        self.channels = [
            self.evtchn.open_unbound(0, self._callback(number), mask=mask)
            for number in range(count)
        ]
        self.far = [int(s.dom0.bind_interdomain(s.guest.domid, one.port)) for one in self.channels]

    def _callback(self, number: int) -> Any:
        return lambda: self.heard.append(number)

    def unmask(self, number: int = 0) -> bool:
        return self.evtchn.unmask(self.channels[number])

    def send(self, number: int = 0) -> list[int]:
        """The peer sends; the callbacks that ran since the last one."""
        self.s.dom0.send(self.far[number])
        return self.run()

    def run(self) -> list[int]:
        self.s.hypervisor.loop.run()
        found, self.heard = self.heard, []
        return found

    def close(self) -> None:
        self.evtchn.forget()


@SUITE.case(
    "EVT-050",
    "a channel is masked until its owner unmasks it, and what came before is told then",
    source=f"{EVTCHN_C}, EvtchnUnmask",
    expected="no callback before; unmask says that it is pending: the caller acts",
    hostile=False,
)
def _unmask(s: MachineScene) -> None:
    guest = Channels(s)
    expect(guest.send(), [], "callbacks of a channel that is masked")
    expect(guest.unmask(), True, "unmask of what is pending")
    expect(guest.send(), [0], "callbacks")
    guest.close()


@SUITE.case(
    "EVT-051",
    "a peer that sends without end",
    source=f"{EVTCHN_C}, EvtchnPoll; events coalesce",
    expected="one callback for what came while the guest did not run; every channel has its turn",
)
def _storm(s: MachineScene) -> None:
    guest = Channels(s, 3)
    for number in range(3):
        guest.unmask(number)
    for _ in range(2000):
        s.dom0.send(guest.far[0])
    s.dom0.send(guest.far[2])
    expect(sorted(guest.run()), [0, 2], "callbacks")
    for _ in range(50):
        expect(guest.send(1), [1], "callbacks of one event")
    guest.close()


@SUITE.case(
    "EVT-052",
    "events behind a close",
    source=f"{EVTCHN_C}, EvtchnClose",
    expected="no callback of a channel that was closed, pending or not; its port is free",
)
def _behind_close(s: MachineScene) -> None:
    guest = Channels(s, 2)
    guest.unmask(0)
    guest.unmask(1)
    port = guest.channels[0].port
    s.dom0.send(guest.far[0])
    guest.evtchn.close(guest.channels[0])
    expect(guest.run(), [], "callbacks")
    expect(s.dom0.send(guest.far[0]), 0, "send to the closed end")
    expect(guest.run(), [], "callbacks after that")
    expect((s.guest.status(port), s.dom0.status(guest.far[0])), (CLOSED, UNBOUND), "status")
    expect(guest.send(1), [1], "callbacks of the other channel")
    guest.close()


@SUITE.case(
    "EVT-053",
    "a channel that masks itself at each event",
    source=f"{EVTCHN_C}, Mask of EvtchnOpen",
    expected="one callback until it is unmasked; what came meanwhile is told at the unmask",
    hostile=False,
)
def _auto_mask(s: MachineScene) -> None:
    guest = Channels(s, mask=True)
    guest.unmask()
    expect((guest.send(), guest.send(), guest.send()), ([0], [], []), "callbacks")
    expect(guest.unmask(), True, "unmask")
    guest.close()


@SUITE.case(
    "EVT-054",
    "bits of ports that the guest never opened",
    source=f"{EVTCHN_C}, EvtchnPoll: no channel in the hash",
    expected="they are passed over; its own events arrive",
)
def _foreign_bits(s: MachineScene) -> None:
    guest = Channels(s)
    guest.unmask()
    stray = int(s.guest.bind_virq(TIMER))
    s.guest.unmask_all()
    for port in (stray, 40, 63):
        s.guest.set_pending(port, True)
    expect(guest.send(), [0], "callbacks")
    expect(guest.send(), [0], "callbacks of the next one")
    guest.close()


@SUITE.case(
    "EVT-055",
    "an event that comes while the callback of the one before runs",
    source=f"{EVTCHN_C}: the pending bit is cleared before the callback; win-xenbus 6188b28",
    expected="one more callback, in either ABI: the first may have looked too early",
)
def _meanwhile(s: MachineScene) -> None:
    for fifo in (False, True):
        guest = Channels(s, fifo=fifo)
        left = [3]

        def again(guest: Channels = guest, left: list[int] = left) -> None:
            guest.heard.append(0)
            if left[0]:
                left[0] -= 1
                s.dom0.send(guest.far[0])

        guest.channels[0].callback = again
        guest.unmask()
        name = "FIFO" if fifo else "2-level"
        expect(guest.send(), [0, 0, 0, 0], f"callbacks in the {name} ABI")
        guest.close()
        s.guest.reset()
