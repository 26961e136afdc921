"""A guest without manners under a toolstack at work: it writes what it may write, at any moment.

It rewrites states, references and backend links, takes its directories away, connects with
nonsense, scribbles on its rings, closes ports, leaves transactions open, acknowledges late, never
or with garbage, and goes down when it likes. Every command of the toolstack ends with a defined
result in bounded virtual time, and after the guest's end the host holds what it held before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from errno import ESRCH

from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus.store import StoreInterface
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.host.libxl import ToolstackError
from xenpv.testing.census import leaks, take_census
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_front import RawBlkFront, RawFront, RawGuest, RawNetFront
from xenpv.xen.domain import XENSTORE_PFN
from xenpv.xen.loop import NS_PER_MS, NS_PER_S

# 60 s for an acknowledgement, 120 s for the end, 10 s a device twice over, and some.
COMMAND_NS = 300 * NS_PER_S
KEYS = (
    "state", "backend", "backend-id", "ring-ref", "ring-ref0", "ring-ref1", "event-channel",
    "event-channel-tx", "event-channel-rx", "tx-ring-ref", "rx-ring-ref", "protocol", "online",
    "ring-page-order", "multi-queue-num-queues", "request-rx-copy", "feature-persistent",
    "queue-0/ring-ref", "queue-0", "virtual-device", "mac", "handle", "hotplug-status",
)  # fmt: skip
VALUES = (
    "", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "-1", "4294967295", "18446744073709551616",
    "x86_64-abi", "x86_32-abi", "none", "/local/domain/0/backend/vbd/0/0", "/local/domain/0", "/", "..",
    "/local/domain/0/backend/vif/1/0", "1000000", "\x00", "4 ", "0x4", "a" * 900,
)  # fmt: skip
CONTROL = (
    "control/shutdown", "control/sysrq", "device/suspend/event-channel", "data/x",
    "control/feature-suspend", "error/x", "drivers/0", "attr/vif/0/mac/0",
)  # fmt: skip


class Hostile:
    """What runs in the domain instead of a kernel: one act each time its timer fires."""

    def __init__(self, xen: Platform, guest: Guest, seed: int) -> None:
        self.xen = xen
        self.guest = guest
        self.domain = domain = guest.created.domain
        self.pick = random.Random(seed)
        for task in [task for task in domain.tasks if task.name == "boot"]:
            domain.forget(task)
        domain.start_vcpus()
        self.raw = RawGuest(xen, domain)
        port = domain.hvm_param(HVM_PARAM.STORE_EVTCHN)
        self.store = StoreInterface(domain, self.raw.evtchn, XENSTORE_PFN, port)
        self.fronts: list[RawFront] = [RawBlkFront(self.raw, 51712), RawNetFront(self.raw, 0)]
        self.acts = 0
        # Periodic, so that the host's run() does not wait for the last act of all.
        self._timer = domain.timer(domain.task("hostile", self.act), NS_PER_MS)
        self._timer.arm(1)
        self._heard = domain.task("heard", int)
        self._choices: list[Callable[[], object]] = [
            self.write_key, self.write_key, self.write_key, self.remove, self.connect, self.connect,
            self.scribble, self.notify, self.close_port, self.control, self.control, self.hold,
            self.watch, self.walk, self.walk, self.walk, self.die,
        ]  # fmt: skip

    def act(self) -> None:
        """Whatever comes, and the next one soon."""
        self.acts += 1
        with suppress(StoreError, HypercallError, LocalProtocolError):  # the host refused
            self.pick.choice(self._choices)()
        self._timer.period_ns = self.pick.choice(
            (NS_PER_MS, 10 * NS_PER_MS, 100 * NS_PER_MS, NS_PER_S)
        )
        self._timer.arm(self._timer.period_ns)

    def front(self) -> RawFront:
        return self.pick.choice(self.fronts)

    def home(self) -> str:
        front = self.front()
        return f"device/{front.kind}/{self.pick.choice((front.devid, front.devid, 51728, 1))}"

    def value(self) -> str:
        return self.pick.choice(VALUES)

    def write_key(self) -> None:
        self.store.write(f"{self.home()}/{self.pick.choice(KEYS)}", self.value())

    def remove(self) -> None:
        self.store.remove(
            self.pick.choice((self.home(), f"{self.home()}/{self.pick.choice(KEYS)}"))
        )

    def walk(self) -> None:
        """A state, such as an honest frontend would write."""
        self.store.write(f"{self.home()}/state", str(self.pick.randrange(1, 7)))

    def connect(self) -> None:
        """With rings that are there, most of the time."""
        front = self.front()
        front.attach()
        for key, value in front.keys().items():
            good = self.pick.random() < 0.9
            self.store.write(
                f"device/{front.kind}/{front.devid}/{key}", value if good else self.value()
            )

    def scribble(self) -> None:
        front = self.front()
        sring = getattr(front, "sring", None) if front.port else None
        if sring is not None:
            self.domain.write(sring.pfn, self.pick.randrange(0, 512), self.pick.randbytes(64))
            front.notify()

    def notify(self) -> None:
        self.domain.evtchn.send(self.pick.randrange(0, 40))

    def close_port(self) -> None:
        port = self.pick.randrange(3, 40)
        if port != self.store.channel.port:
            self.domain.evtchn.close(port)

    def control(self) -> None:
        value = self.pick.choice(("", "suspend", "poweroff", "garbage", "7", "-1", "99999999"))
        self.store.write(self.pick.choice(CONTROL), value)

    def hold(self) -> None:
        transaction = self.store.transaction_start()
        self.store.write("data/held", self.value(), transaction)

    def watch(self) -> None:
        self.store.watch_add(self.pick.choice(("device", "control", "data")), self._heard)

    def die(self) -> None:
        if self.pick.random() < 0.03:
            self.domain.sched.shutdown(self.pick.randrange(0, 6))


class Host:
    """A toolstack at work; `results` are what its commands ended with."""

    def __init__(self, xen: Platform, seed: int) -> None:
        self.xen = xen
        self.pick = random.Random(seed)
        self.results: list[str] = []
        self.guest = xen.create(
            name="evil", disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()]
        )
        self.hostile = Hostile(xen, self.guest, seed + 1)
        self.commands: list[Callable[[], object]] = [
            self.guest.suspend,
            self.guest.suspend,
            lambda: self.guest.resume(fast=True),
            lambda: self.guest.resume(fast=False),
            self.guest.pause,
            self.guest.unpause,
            self.guest.unpause,
            lambda: self.guest.attach(Disk(MemoryImage(bytearray(1 << 16)))),
            lambda: self.guest.attach(Vif()),
            lambda: self.detach("safe"),
            lambda: self.detach("auto"),
            lambda: self.detach("forced"),
            lambda: self.guest.sysrq("h"),
            lambda: self.guest.set_memory(48),
            lambda: self.guest.rename(self.pick.choice(("evil", "worse"))),
            lambda: self.rebind(),
            lambda: xen.advance(5),
        ]

    def detach(self, mode: str) -> None:
        kind, devid = self.pick.choice((("vbd", 51712), ("vbd", 51728), ("vif", 0), ("vif", 1)))
        self.guest.detach(kind, devid, mode=mode)

    def rebind(self) -> None:
        devices = [key for key in self.xen.backends.devices if key[1] == self.guest.domid]
        if devices:
            self.xen.backends.rebind(*self.pick.choice(devices))
            self.xen.run()

    def command(self) -> None:
        before = self.xen.loop.now
        try:
            self.pick.choice(self.commands)()
        except ToolstackError as error:
            self.results.append(error.code.name)
        except LocalProtocolError:
            self.results.append("not now")
        except HypercallError as error:
            # A pause count is all that it can be about, or a domain that died.
            assert "pause" in (error.operation or "") or error.errno == ESRCH
            self.results.append("refused")
        else:
            self.results.append("done")
        assert self.xen.loop.now - before <= COMMAND_NS
        self.xen.advance(self.pick.choice((0, 0.001, 1, 8)))
        check_all(self.xen, quiescent=False, hostile=[self.guest.domid])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_host_outlives_any_guest(seed: int) -> None:
    with Platform(seed=seed) as xen:
        other = xen.create(
            name="good", disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()]
        ).start()
        xen.create(name="first").destroy()  # what is made with the first use is there
        before = take_census(xen)
        host = Host(xen, seed)
        host.guest.unpause()
        xen.advance(2)
        for _ in range(12):
            host.command()
        started = xen.loop.now
        host.guest.destroy()
        assert xen.loop.now - started <= COMMAND_NS
        assert host.hostile.acts > 0
        check_all(xen)
        assert leaks(before, take_census(xen)) == []
        # And whoever lives beside it noticed nothing.
        other.disks[0].write(0, b"x" * 4096)
        assert other.disks[0].read(0, 8) == b"x" * 4096
