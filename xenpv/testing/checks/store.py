"""Watches, transactions and nodes: what a driver registered it still wants, and what it wrote
is what it means.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from xenpv.back.blkback import Blkback
from xenpv.back.netback import Netback
from xenpv.store.connection import Connection

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.platform import Platform

OURS: Final = (Blkback, Netback)


def check_watches(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """Of the backends' bus: each watch is of a device that is there, and no node is watched
    twice. Of a guest: xenstored has the watches that its client has, each of which would hear
    of a change, and no transaction is open.
    """
    findings = [*_backends(platform)]
    for guest in platform.guests:
        domain = guest.created.domain
        if platform.hypervisor.domains.get(guest.domid) is not domain or domain.dying:
            continue
        if not domain.is_shutdown and guest.domid not in hostile:
            findings += _guest(platform, guest)
    return findings


def _backends(platform: Platform) -> list[str]:
    bus = platform.backends
    client = bus.store.connection
    if not isinstance(client, Connection):
        return []  # a driver domain's
    homes = [f"{one.frontend}/" for one in bus.devices.values()]
    homes += [f"{one.path}/" for one in bus.devices.values()]
    findings, seen = [], dict.fromkeys([bus.root])
    for path, _token in client.watches:
        text = path.decode("utf-8", "replace")
        if text == bus.root or text.startswith("@"):
            continue
        if text in seen:
            findings.append(f"backends watch {text} twice")
        elif not text.startswith(tuple(homes)):
            findings.append(f"backends watch {text}, and have no device there")
        seen[text] = None
    if client.transactions:
        findings.append("backends have a transaction open")
    return findings


def _guest(platform: Platform, guest: Guest) -> list[str]:
    bus = guest.bus
    known = platform.xenstored.known.get(guest.domid)
    connection = None if known is None else known.connection
    if bus is None or connection is None or bus.store.broken or bus.store.neighbour is not None:
        return []
    name, store = f"d{guest.domid}", bus.store
    findings = [
        f"{name}: its watch of {one.path} expired in a suspend, and was not added again"
        for one in store.watches()
        if one.expired
    ]
    wanted, there = len(store.watches()), len(connection.watches)
    if wanted != there and not findings:
        findings.append(f"{name}: xenstored has {there} watches of it, its client {wanted}")
    if store.transactions():
        findings.append(f"{name}: {len(store.transactions())} transactions are open")
    return findings


def check_nodes(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """The state of each device is in its backend's `state`; one that is broken says why in
    `error`, or has lost its carrier.
    """
    findings = []
    for device in platform.backends.devices.values():
        if not isinstance(device.driver, OURS) or device.frontend_domid in hostile:
            continue
        said, state = device.get("state"), str(int(device.state))
        if said is not None and said != state:
            findings.append(f"{device.name}: its state is {state}, the store says {said}")
        has_carrier = isinstance(device.driver, Netback) and not device.driver.disabled
        if device.broken and has_carrier and device.get("error") is None:
            findings.append(f"{device.name}: broken ({device.broken}), and no error in the store")
    return findings
