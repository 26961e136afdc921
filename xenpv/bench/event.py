"""From notify to handler: a task woken in Python, and an event through shared bits.

Two players answer each other, twice, so that two tasks are runnable most of the time and
the seeded chooser is asked, as in a busy platform. Times are CPU time.
"""

from __future__ import annotations

from collections.abc import Generator
from time import thread_time_ns
from typing import Final

from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop, Task

PAIRS: Final = 2
HOPS: Final = 2000
NR_FRAMES: Final = 1 << 16


class Player:
    """Answers each wake-up by waking the other one, `hops` times in all."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.task = Task(loop, 0, name, self.run)
        self.other: Player = self
        self.hops = 0

    def run(self) -> None:
        if self.hops:
            self.hops -= 1
            self.other.task.wake()


def dispatch() -> Generator[tuple[float, None], None, None]:
    """Microseconds per wake, from one handler to the next."""
    loop = Loop(seed=1)
    first = [Player(loop, f"first {pair}") for pair in range(PAIRS)]
    for player in first:
        player.other = Player(loop, "second")
        player.other.other = player
    while True:
        for player in first:
            player.hops = player.other.hops = HOPS // 2
            player.task.wake()
        start = thread_time_ns()
        done = loop.run()
        took = thread_time_ns() - start
        yield took / done / 1000, None


class End:
    """One end of a channel: its handler notifies the other end, `hops` times in all."""

    def __init__(self, interface: EvtchnInterface) -> None:
        self.interface = interface
        self.channel: Channel
        self.hops = 0

    def accept(self, remote: Domain) -> int:
        self.channel = self.interface.open_unbound(remote.domid, self.event)
        self.interface.unmask(self.channel, force=True)
        return self.channel.port

    def bind(self, remote: Domain, port: int) -> None:
        self.channel = self.interface.open_inter_domain(remote.domid, port, self.event)
        self.interface.unmask(self.channel, force=True)

    def event(self) -> None:
        if self.hops:
            self.hops -= 1
            self.interface.send(self.channel)


def bits() -> Generator[tuple[float, None], None, None]:
    """Microseconds per event: send, pending bits, upcall, scan, acknowledge, callback."""
    loop = Loop(seed=1)
    hypervisor = Hypervisor(loop, nr_frames=NR_FRAMES)
    try:
        ends = [_pair(hypervisor) for _ in range(PAIRS)]
        loop.run()
        while True:
            for one, two in ends:
                one.hops = two.hops = HOPS // 2
                before = one.channel.count + two.channel.count
                one.interface.send(one.channel)
            start = thread_time_ns()
            loop.run()
            took = thread_time_ns() - start
            done = PAIRS * (one.channel.count + two.channel.count - before)
            yield took / done / 1000, None
    finally:
        hypervisor.close()


def _pair(hypervisor: Hypervisor) -> tuple[End, End]:
    domains = [hypervisor.create_domain(vcpus=1, max_pages=16) for _ in range(2)]
    one, two = (End(EvtchnInterface(domain)) for domain in domains)
    two.bind(domains[0], one.accept(domains[1]))
    for domain in domains:
        domain.unpause()
    return one, two
