"""Scenarios of a guest's store client: conflicts, and what a suspend ends."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

from xenpv.bus.store_client import Transaction
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError
from xenpv.guest import Guest
from xenpv.host.xs import XsHandle
from xenpv.platform import Platform, Vif
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.steps import Steps

COUNTER: Final = "data/counter"
MEMORY_MIB: Final = 16
TURNS: Final = 3


def _guest(xen: Platform) -> tuple[Guest, XenBus]:
    """One without devices, running."""
    guest = xen.create(name="guest", memory_mib=MEMORY_MIB).start()
    bus = guest.bus
    assert bus is not None
    return guest, bus


def store_conflict(x: Explorer) -> None:
    """A guest counts in transactions while somebody in dom0 counts in the same node: none of
    their additions is lost, and no transaction stays open.
    """
    xen = x.platform()
    guest, bus = _guest(xen)
    xs = XsHandle(xen.xenstored.connect_local("counting"))
    path = f"/local/domain/{guest.domid}/{COUNTER}"
    bus.store.write(COUNTER, "0")
    disturbed: list[int] = []

    def bump() -> None:
        xs.write(path, str(int(xs.read(path) or "0") + 1))

    def add(turn: int, transaction: Transaction) -> None:
        value = int(bus.store.read(COUNTER, transaction))
        if turn not in disturbed:
            disturbed.append(turn)
            bump()  # between its read and its commit
        bus.store.write(COUNTER, str(value + 1), transaction)

    counts = [partial(bus.store.transaction, partial(add, turn)) for turn in range(TURNS)]
    Steps([*counts]).start(guest.created.domain.task, "counter")
    Steps([bump] * TURNS).start(xen.dom0.task, "counting")
    x.run()
    found, expected = int(xs.read(path) or "0"), 3 * TURNS
    assert found == expected, f"{found} of {expected} additions are left"
    assert not bus.store.transactions(), "a transaction is open"


def store_resume(x: Explorer) -> None:
    """A guest that slept in its own domain hears of what happens to it afterwards: a device is
    added, and it is asked to sleep again.
    """
    xen = x.platform()
    guest, _bus = _guest(xen)
    for _ in range(2):
        guest.suspend()
        guest.resume(fast=False)
    x.begin()
    guest.attach(Vif())
    x.run()
    assert not guest.unconnected, f"{guest.unconnected} after a suspend"
    guest.suspend()
    guest.resume(fast=False)


MANY: Final = 400  # names of more bytes than a reply has


def _fail(bus: XenBus, transaction: Transaction) -> None:
    bus.store.write(COUNTER, "1", transaction)
    bus.store.read("data/absent", transaction)


def store_uses(x: Explorer) -> None:
    """A guest gives up a transaction, drops a watch and lists a long directory: nothing is left
    open or registered, and every name is there.
    """
    xen = x.platform()
    guest, bus = _guest(xen)
    xs = XsHandle(xen.xenstored.connect_local("names"))
    home = f"/local/domain/{guest.domid}/data"
    names = [f"a-name-of-some-length-{number}" for number in range(MANY)]
    for name in names:
        xs.write(f"{home}/{name}", "")
    found: list[list[str]] = []
    heard: list[str] = []

    def give_up() -> None:
        with suppress(StoreError):
            bus.store.transaction(partial(_fail, bus))

    def watch() -> None:
        bus.store.watch("data", heard.append).unwatch()

    steps = Steps([give_up, watch, lambda: found.append(bus.store.directory("data"))])
    steps.start(guest.created.domain.task, "program")
    x.run()
    assert sorted(found[0]) == sorted(names), f"{len(found[0])} of {MANY} names are listed"


SCENARIOS: Final = (store_conflict, store_resume, store_uses)
