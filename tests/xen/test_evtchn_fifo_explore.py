"""The kernel's FIFO producer against the consumer loop of bus/, at every access of both.

Both run in greenlets; the access hook decides before each access to shared memory whether
the other one goes on. The producer is a peer's hypercalls: inside them only the guest's
memory steps run, as on another CPU, and never a hypercall of the guest. No event may be
lost: when both are done, nothing is pending behind an open mask, and every port that was
sent on was delivered.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator

import attrs
import pytest
from greenlet import getcurrent, greenlet

from tests.xen.evtchn_world import ARRAY_PFN, CONTROL_PFN
from xenpv.abi._kernel import lib
from xenpv.bus.evtchn_fifo import ProcessorFifo
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

# ASan knows one stack, greenlets have several: it takes a switch for an underflow.
pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer sees no greenlets"
)

NR_PORTS = 3
PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK = (1 << 17) - 1
NR_FRAMES = 1 << 12

# What the producer does, in order: ("send", port), ("priority", port, p), ("vcpu", port, v).
Step = tuple[str | int, ...]
SCENARIOS: dict[str, tuple[bool, tuple[Step, ...]]] = {
    # name: (whether the handlers mask while they run, steps)
    "two ports": (False, (("send", 1), ("send", 2), ("send", 1))),
    "one queue after another": (
        False,
        (("send", 1), ("priority", 1, 3), ("priority", 3, 3), ("send", 1), ("send", 2),
         ("send", 3), ("send", 2)),
    ),
    "from vcpu to vcpu": (
        False,
        (("send", 1), ("vcpu", 1, 1), ("vcpu", 3, 1), ("send", 1), ("send", 2), ("send", 3)),
    ),
    "masked while handled": (True, (("send", 1), ("send", 2), ("send", 1), ("send", 2))),
}  # fmt: skip


@attrs.define(eq=False)
class Seen:
    """What one interleaving showed."""

    order: str = ""  # who made each access: p or c
    busy: bool = False  # a word was BUSY when the guest got its turn
    waited: bool = False  # the guest could not unmask a BUSY word at once
    delivered: list[int] = attrs.Factory(list)
    lost: list[str] = attrs.Factory(list)


class Run:
    """One interleaving of a scenario; `switches` says at which accesses the other goes on."""

    def __init__(
        self, automask: bool, steps: tuple[Step, ...], switch: Callable[[int], bool]
    ) -> None:
        self.automask = automask
        self.steps = steps
        self.switch = switch
        self.seen = Seen()
        self.order: list[str] = []
        self.in_hypercall = False
        self.hypervisor = Hypervisor(Loop(seed=1), nr_frames=NR_FRAMES)
        self.dom0 = self._domain(0, 1)
        self.guest = self._domain(1, 2)
        for vcpu in range(2):
            self.guest.evtchn.init_control(CONTROL_PFN, 72 * vcpu, vcpu)
        self.guest.evtchn.expand_array(ARRAY_PFN)
        self.words = self.guest.view(ARRAY_PFN).cast("I")
        self.ports = [self.guest.evtchn.alloc_unbound(0) for _ in range(NR_PORTS)]
        self.far = {port: self.dom0.evtchn.bind_interdomain(1, port) for port in self.ports}
        for vcpu in range(2):
            self.guest.set_upcall(vcpu, ProcessorFifo(self.guest, vcpu, self.event).upcall)
        self.producer = greenlet(self.produce)
        self.consumer = greenlet(self.consume)

    def _domain(self, domid: int, vcpus: int) -> Domain:
        made = self.hypervisor.create_domain(domid, vcpus=vcpus, max_pages=512)
        made.populate(256)
        made.unpause()
        made.start_vcpus()
        return made

    def go(self) -> Seen:
        self.hypervisor.set_hook(self.hook)
        self.producer.switch()
        while not (self.producer.dead and self.consumer.dead):
            (self.consumer if self.producer.dead else self.producer).switch()
        self.hypervisor.set_hook(None)
        self.judge()
        self.words.release()
        self.hypervisor.close()
        self.seen.order = "".join(self.order)
        return self.seen

    def hook(self, _actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        mine = getcurrent() is self.producer
        self.order.append("p" if mine else "c")
        if not mine and kind & lib.ACCESS_HYPERVISOR:
            return  # the guest's hypercall has the lock that the producer would need
        other = self.consumer if mine else self.producer
        if not other.dead and self.switch(len(self.order)):
            if mine and any(self.words[port] & BUSY for port in self.ports):
                self.seen.busy = True
            other.switch()

    def produce(self) -> None:
        evtchn = self.guest.evtchn
        for what, port, *value in self.steps:
            self.in_hypercall = True
            if what == "send":
                self.dom0.evtchn.send(self.far[int(port)])
            elif what == "priority":
                evtchn.set_priority(int(port), int(value[0]))
            else:
                evtchn.bind_vcpu(int(port), int(value[0]))
            self.in_hypercall = False

    def consume(self) -> None:
        loop = self.guest.loop
        while True:
            if not any(loop.pump(task) for task in self.guest.upcalls):
                if self.producer.dead:
                    return
                self.producer.switch()

    def event(self, port: int) -> None:
        check, kernel = self.guest.check, self.guest.kernel
        if self.automask:
            check(lib.evtchn_mask(kernel, port))
        check(lib.evtchn_clear_pending(kernel, port))
        self.seen.delivered.append(port)
        if self.automask:
            self.unmask(port)

    def unmask(self, port: int) -> None:
        """As Linux and win-xenbus: wait while BUSY, then EVTCHNOP_unmask if it is pending."""
        while True:
            try:
                pending = self.guest.check(lib.evtchn_guest_unmask(self.guest.kernel, port))
                break
            except HypercallError as error:
                assert error.name == "EBUSY"
                self.seen.waited = True
                self.producer.switch()
        if pending:
            while self.in_hypercall and not self.producer.dead:
                self.producer.switch()
            self.guest.evtchn.unmask(port)

    def judge(self) -> None:
        sent = {int(step[1]) for step in self.steps if step[0] == "send"}
        for port in self.ports:
            word = self.words[port]
            if port in sent and port not in self.seen.delivered:
                self.seen.lost.append(f"port {port} was never delivered")
            if word & (PENDING | LINKED | BUSY):
                self.seen.lost.append(f"port {port} was left at {word:#x}")


def preemptions(accesses: int, most: int) -> Iterator[frozenset[int]]:
    """Every choice of up to `most` places at which to switch."""
    for count in range(most + 1):
        for places in itertools.combinations(range(1, accesses + 1), count):
            yield frozenset(places)


def explore(name: str, wanted: int, seed: int) -> tuple[set[str], int, int, list[str]]:
    """Orders seen, runs with BUSY met, runs that waited for it, and what was lost.

    Half of them are all with few preemptions, half are random and switch often.
    """
    automask, steps = SCENARIOS[name]
    orders: set[str] = set()
    busy = waited = 0
    lost: list[str] = []

    def one(switch: Callable[[int], bool]) -> None:
        nonlocal busy, waited
        seen = Run(automask, steps, switch).go()
        orders.add(seen.order)
        busy += seen.busy
        waited += seen.waited
        if seen.lost:
            lost.append(f"{name}: {seen.order}: {'; '.join(seen.lost)}")

    accesses = len(Run(automask, steps, lambda _at: False).go().order)
    for places in preemptions(accesses, 3):
        if len(orders) >= wanted // 2 or lost:
            break
        one(places.__contains__)
    chance = random.Random(seed)
    for _ in range(4 * wanted):
        if len(orders) >= wanted or lost:
            break
        share = chance.choice((0.1, 0.3, 0.6))
        one(lambda _at, share=share: chance.random() < share)  # type: ignore[misc]
    return orders, busy, waited, lost


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_event_is_lost_however_producer_and_consumer_interleave(name: str) -> None:
    orders, busy, waited, lost = explore(name, 2600, seed=7)
    assert not lost, lost[0]
    assert len(orders) >= 2600
    assert busy
    assert waited or not SCENARIOS[name][0]


def test_a_guest_that_keeps_changing_the_tail_uses_up_the_tries() -> None:
    """One try, then BUSY and four more: the event counts as linked, nothing else suffers."""
    run = Run(False, (), lambda _at: False)
    guest, words = run.guest, run.words
    tries = 0

    def hostile(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        nonlocal tries
        if kind & lib.ACCESS_ATOMIC and offset == 4 * 1 and words[1] & LINKED:
            tries += 1
            words[1] ^= MASKED

    run.dom0.evtchn.send(run.far[1])
    run.hypervisor.set_hook(hostile)
    run.dom0.evtchn.send(run.far[2])
    run.hypervisor.set_hook(None)
    # five times the exchange, and setting and clearing BUSY
    assert tries == 7
    assert words[1] & (BUSY | LINK) == 0
    assert words[2] == PENDING | LINKED
    words[1] &= ~MASKED & 0xFFFFFFFF
    assert guest.loop.pump(guest.upcalls[0])
    assert run.seen.delivered == [1]  # 2 is lost to the guest that broke the rules
    run.dom0.evtchn.send(run.far[3])  # follows 2, which is Xen's tail
    assert words[2] & LINK == 3
    run.dom0.evtchn.send(run.far[1])
    assert words[3] & LINK == 1
    words.release()
    run.hypervisor.close()
