"""How a tape hears of what the trace's records do not hold, on one machine.

Slots are read from machine memory at the record of their publication, past the access hook and
the log. Nothing here changes memory, wakes a task or records a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from xenpv.host.network import Bridge, Direction, Frame, Network
from xenpv.store.heard import hear
from xenpv.view.tape import StoreChange, TapedDomain, TapedFrame, TapedTask
from xenpv.view.tapedrings import TapedRings
from xenpv.xen.trace import Event

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.store.node import Node
    from xenpv.store.permission import Permissions
    from xenpv.view.tape import Tape, TapeEvent

CREATED: Final = 1  # of a DOMAIN event
DEAD: Final = 3
DOMAINS: Final = "/local/domain/"


class TapedMachine:
    """One machine of a tape's loop."""

    def __init__(self, tape: Tape, platform: Platform) -> None:
        self.tape = tape
        self.platform = platform
        self.number = platform.hypervisor.number
        self.rings = TapedRings(tape, platform)
        self._ran = 0  # whose task was the last to run
        self._domains: dict[int, int] = {}  # places in Tape.domains of those that live
        self._perms: dict[int, tuple[Permissions, tuple[str, ...]]] = {}
        for domid in platform.hypervisor.domains:
            self._appears(domid, self._created(domid))
        hear(platform.xenstored, self._changes)
        self.bridges(platform.network, "")

    def hear(self, event: TapeEvent) -> None:
        """An event of this machine, which is the tape's last."""
        self.rings.sample(self.tape.moment - 1)
        kind = event.event
        if kind is Event.PUBLISH:
            self.rings.published(event.domid, event.a, event.b)
        elif kind is Event.SEND:
            self.rings.found(self._ran)  # the task that runs may have attached a ring
            self.rings.look(event.domid)
        elif kind in (Event.DELIVER, Event.TIMER):
            if (self.number, event.a) not in self.tape.tasks:
                self._name(event.domid, event.a)
            self.rings.found(self._ran)
            self._ran = event.domid
        elif kind is Event.DOMAIN:
            if event.a == CREATED:
                self._appears(event.domid, self.tape.moment)
            elif event.a == DEAD:
                self._dies(event.domid)

    def settle(self) -> None:
        """Nothing happens any more, or not yet: what did the ends take?"""
        if not self.tape.full:
            self.rings.sample(self.tape.moment)

    # domains and tasks

    def _appears(self, domid: int, moment: int) -> None:
        domains = self.tape.domains
        self._domains[domid] = len(domains)
        domains.append(TapedDomain(self.number, domid, "", moment, None))

    def _created(self, domid: int) -> int:
        """When a domain was that is there already."""
        events = self.tape.events
        for moment in range(len(events) - 1, -1, -1):
            event = events[moment]
            what = (event.machine, event.domid, event.event, event.a)
            if what == (self.number, domid, Event.DOMAIN, CREATED):
                return moment
        return 0

    def _dies(self, domid: int) -> None:
        place = self._domains.pop(domid, None)
        if place is not None:
            domains = self.tape.domains
            domains[place] = attrs.evolve(domains[place], last=self.tape.moment)

    def _name(self, domid: int, number: int) -> None:
        """A task that runs for the first time, and the others of its domain."""
        tasks = self.tape.tasks
        domain = self.platform.hypervisor.domains.get(domid)
        for task in () if domain is None else domain.tasks:
            key = self.number, task.number
            tasks.setdefault(key, TapedTask(self.number, task.domid, task.number, task.name))
        key = self.number, number
        tasks.setdefault(key, TapedTask(self.number, domid, number, ""))

    # the store

    def _changes(self, path: bytes, node: Node | None) -> None:
        tape = self.tape
        if tape.full:
            return
        moment, text = max(0, tape.moment), path.decode()
        if node is None:
            tape.changes.append(StoreChange(moment, text, None, (), self.number))
            return
        perms, value = self._texts(node.perms), node.value
        tape.changes.append(StoreChange(moment, text, value, perms, self.number))
        if value and text.startswith(DOMAINS):
            self._told(text[len(DOMAINS) :], value)

    def _texts(self, perms: Permissions) -> tuple[str, ...]:
        known = self._perms.get(id(perms))
        if known is None:
            # Kept with the object, whose id is nobody else's for so long.
            texts = tuple(text.decode() for text in perms.texts())
            known = self._perms[id(perms)] = perms, texts
        return known[1]

    def _told(self, below: str, value: bytes) -> None:
        """A node below a domain's home has a value now."""
        domid, _, key = below.partition("/")
        if key == "name" and domid.isdecimal():
            place = self._domains.get(int(domid))
            domains = self.tape.domains
            if place is not None and not domains[place].name:
                name = value.decode(errors="backslashreplace")
                domains[place] = attrs.evolve(domains[place], name=name)
        elif "ring-ref" in key and domid.isdecimal():
            self.rings.told(int(domid), key, value)

    # bridges

    def bridges(self, network: Network, prefix: str) -> None:
        """Capture every bridge of a network, also those made later."""

        def watch(bridge: Bridge) -> None:
            bridge.taps.append(_Capture(self, f"{prefix}{bridge.name}"))

        network.watchers.append(watch)
        for bridge in network.bridges.values():
            watch(bridge)


class _Capture:
    """A bridge's tap."""

    def __init__(self, machine: TapedMachine, bridge: str) -> None:
        self._machine = machine
        self._bridge = bridge

    def capture(self, port_name: str, direction: Direction, frame: Frame, now_ns: int) -> None:
        tape = self._machine.tape
        if not tape.full:
            is_in = direction is Direction.IN
            data = bytes(frame.data)
            moment, machine = max(0, tape.moment), self._machine.number
            tape.frames.append(
                TapedFrame(moment, now_ns, self._bridge, port_name, is_in, data, machine)
            )

    def lost(self, port_name: str, count: int) -> None:
        """Frames that found no slots: the port's statistics count them."""
