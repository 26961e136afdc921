"""A restore as small as it can be: a suspended guest's pages and objects in a new domain."""

from __future__ import annotations

import json
from typing import Any

from xenpv import Guest, Platform
from xenpv.host.libxl import Created
from xenpv.migration.context import capture, capture_domain, populate_domain, rebuild
from xenpv.migration.counterparts import Counterparts
from xenpv.migration.pages import touched
from xenpv.xen.domain import PAGE_SIZE


def text_of(guest: Guest, trusted: tuple[str, ...] = ()) -> str:
    """The guest as a file would have it."""
    return json.dumps(capture(guest, trusted=trusted))


def save(guest: Guest, trusted: tuple[str, ...] = ()) -> tuple[str, str, dict[int, bytes]]:
    """Objects, domain, pages."""
    domain = guest.created.domain
    pages = {pfn: domain.read(pfn, 0, PAGE_SIZE) for pfn in touched(domain)}
    return text_of(guest, trusted), json.dumps(capture_domain(domain)), pages


def load(
    xen: Platform,
    config: Any,
    saved: tuple[str, str, dict[int, bytes]],
    trusted: tuple[str, ...] = (),
) -> Guest:
    """A new guest, paused."""
    objects, domain, pages = saved

    def populate(made: Created) -> None:
        populate_domain(made.domain, json.loads(domain))
        for pfn, page in pages.items():
            made.domain.write(pfn, 0, page)

    guest = Guest(xen, xen.toolstack.create(config, populate=populate))
    try:
        rebuild(guest, json.loads(objects), trusted=trusted)
    except BaseException:
        guest.destroy()
        raise
    xen.guests.append(guest)
    return guest


def moved(xen: Platform, guest: Guest, *, trusted: tuple[str, ...] = ()) -> Guest:
    """Suspend it, put it into a new domain, and let that run."""
    guest.suspend()
    saved = save(guest, trusted)
    guest.destroy()
    new = load(xen, guest.created.config, saved, trusted)
    new.start()
    new.counterparts = Counterparts(guest, new)
    return new


def text_before_it_runs(guest: Guest, trusted: tuple[str, ...] = ()) -> str:
    """What `capture` gives of a restored guest, as if its domain were suspended still."""
    domain = guest.created.domain
    count = domain.pause_count
    domain.is_shutting_down = domain.is_shutdown = True
    domain.shutdown_code, domain.pause_count = 2, 0
    try:
        return text_of(guest, trusted)
    finally:
        domain.is_shutting_down = domain.is_shutdown = False
        domain.shutdown_code, domain.pause_count = None, count
