"""A guest of the life-cycle test: its traffic, and what of it there should be by now."""

from __future__ import annotations

import enum
import random
from typing import TYPE_CHECKING

from xenpv.testing.traffic import DiskTraffic, NetTraffic, Source, Station, runs

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.net.adapter import Adapter
    from xenpv.platform import Platform


class State(enum.Enum):
    """What the toolstack should say of it."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"  # shut down with reason suspend
    DOWN = "down"  # shut down, and preserved
    GONE = "gone"


class Tenant(Source):
    """`disks` and `stations` by device number: those that the toolstack attached."""

    def __init__(self, guest: Guest, host: int, personality: str, net: NetTraffic) -> None:
        self.guest = guest
        self.host = host
        self.personality = personality
        self.net = net
        self.state = State.RUNNING
        self.quiet = False
        self.disks: dict[int, DiskTraffic] = {}
        self.stations: dict[int, Station] = {}
        self.leaving: list[DiskTraffic] = []  # detached; the guest may not know that yet
        self.owes = False  # a device was detached that it has not closed
        self.identity: tuple[object, ...] = ()  # of it when it was suspended
        self.memory_mib = guest.created.config.memory_mib

    @property
    def platform(self) -> Platform:
        return self.guest.platform

    @property
    def awake(self) -> bool:
        return self.state is State.RUNNING and runs(self.guest)

    def issue(self, chance: random.Random) -> None:
        """A request to one of its disks, or frames from one of its interfaces."""
        guest = self.guest
        disks, adapters = guest.disks, guest.nets
        at = int(chance.random() * (len(disks) + len(adapters) or 1))
        if at < len(disks):
            traffic = self.disks.get(disks[at].devid)
            if traffic is not None:
                traffic.issue(disks[at], chance)
        elif adapters:
            adapter = adapters[at - len(disks)]
            station = self.stations.get(adapter.number)
            if station is not None and station.adapter is adapter:
                self.net.issue(station, chance)

    def disturb(self) -> None:
        """Something happens to it: frames from it and to it may be lost."""
        for station in self.stations.values():
            self.net.disturb(station)

    def sync(self) -> None:
        """Look at which adapter serves which interface now."""
        adapters = {one.number: one for one in self.guest.nets} if self.awake else None
        for devid, station in self.stations.items():
            if adapters is not None:
                self.net.serve(station, adapters.get(devid))

    def follow(self, adapters: dict[int, Adapter]) -> None:
        """It is in another domain now, and counts on there what it counted here."""
        for devid, station in self.stations.items():
            self.net.disturb(station)
            station.adapter = adapters.get(devid)

    def lose(self) -> None:
        """Its domain is gone, with all that was under way."""
        for traffic in (*self.disks.values(), *self.leaving):
            traffic.lose()
        for station in self.stations.values():
            self.net.serve(station, None)

    def retire(self) -> None:
        """It will not come back."""
        self.lose()
        self.state = State.GONE
        for station in self.stations.values():
            self.net.stations.remove(station)

    @property
    def shape(self) -> tuple[object, ...]:
        """What its census depends on."""
        return (
            self.personality,
            self.state,
            tuple(sorted(self.disks)),
            tuple(sorted(self.stations)),
            self.memory_mib,
        )

    def check(self) -> list[str]:
        """What is wrong with its disks, its devices and what is under way."""
        found = []
        for traffic in (*self.disks.values(), *self.leaving):
            found += traffic.check()
            if self.awake and traffic.under_way:
                found.append(
                    f"{traffic.name}: nothing is left to run, and {len(traffic.under_way)} "
                    f"requests are unanswered: {traffic.under_way[0].pending!r}"
                )
        if not self.awake:
            return found
        self.leaving.clear()
        self.owes = False
        return found + self._unconnected()

    def _unconnected(self) -> list[str]:
        """Of the devices that the toolstack attached."""
        name = self.guest.name
        found = []
        disks = {one.devid: one.target for one in self.guest.disks}
        adapters = {one.number: one for one in self.guest.nets}
        for kind, have, want in (
            ("disks", sorted(disks), sorted(self.disks)),
            ("interfaces", sorted(adapters), sorted(self.stations)),
        ):
            if have != want:
                found.append(f"{name}: {kind} {have}, expected {want}")
        for devid, target in disks.items():
            if target.frontend.is_enabled:
                if devid in self.disks:
                    self.disks[devid].connected = True
            else:
                found.append(f"{name}: disk {devid} is {target.state.value} ({target.broken})")
        for number, adapter in adapters.items():
            if not adapter.link_up:
                found.append(f"{name}: interface {number} is {adapter.state.value}")
        return found
