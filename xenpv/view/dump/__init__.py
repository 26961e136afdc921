"""Rings, grant tables, event channels and the store ring, decoded: of pages and of platforms.

    from xenpv.view.dump import dump, dump_page

    print(dump(xen))                             # everything that the domains of a platform share
    print(dump_page(data, "blkif"))              # a page that somebody got

Nothing here trusts what it reads: any bytes give a dump, in which what cannot be right stands
as WRONG. Looking goes past the access hook and the log, and changes no digest.
"""

from __future__ import annotations

from xenpv.view.dump.kinds import KINDS, dump_page
from xenpv.view.dump.live import (
    dump,
    dump_console,
    dump_grants,
    dump_ports,
    dump_ring,
    dump_store_ring,
)
from xenpv.view.dump.table import Dump, Dumps, Table

__all__ = [
    "KINDS",
    "Dump",
    "Dumps",
    "Table",
    "dump",
    "dump_console",
    "dump_grants",
    "dump_page",
    "dump_ports",
    "dump_ring",
    "dump_store_ring",
]
