"""Tables by name, for the directives {errors}, {opcodes} and {observed}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from xenpv.back.blkunits import UNITS, Units

from . import blkprobes, hashing, hyperprobes, netprobes, storeprobes
from .table import Table
from .texts import UnknownError, of


def units() -> Table:
    """What each kind of backend takes a sector to be."""

    def unit(*, logical: bool) -> str:
        return "logical sectors" if logical else "512 bytes"

    def rest(one: Units) -> str:
        said = []
        if one.wants_large:
            said.append("on larger sectors it wants `feature-large-sector-size`")
        if one.refuses_large:
            said.append("on larger sectors it refuses `feature-large-sector-size`")
        if not one.aligned:
            said.append("where a segment begins is not looked at")
        return "; ".join(said)

    rows = [
        (f"`{one.name}`", of("units", one.name), unit(logical=one.disk), unit(logical=one.request),
         unit(logical=one.segment), rest(one))
        for one in UNITS.values()
    ]  # fmt: skip
    columns = (
        "name",
        "who",
        "`sectors`",
        "sector_number, nr_sectors",
        "first_sect, last_sect",
        "and",
    )
    return Table(tuple(one.replace("`", "") for one in columns), tuple(rows))


Tables = Mapping[str, Callable[[], Table]]

ERRORS: Final[Tables] = {
    "netback-tx": netprobes.table,
    "netback-control": netprobes.control,
    "blkback": blkprobes.table,
    "evtchn": hyperprobes.events,
    "gnttab": hyperprobes.grants,
    "xenstore": storeprobes.errors,
}
OPCODES: Final[Tables] = {
    "xs_wire": storeprobes.ops,
    "evtchn": hyperprobes.event_ops,
    "gnttab": hyperprobes.grant_ops,
}
OBSERVED: Final[Tables] = {
    "blk-rules": blkprobes.rules,
    "blk-promises": blkprobes.promises,
    "blk-units": units,
    "xs-conflicts": storeprobes.conflicts,
    "xs-watches": storeprobes.watches,
    "xs-permissions": storeprobes.permissions,
    "xs-quotas": storeprobes.quotas,
    "rss": hashing.table,
    "errnos": hyperprobes.errnos,
}


def table(kind: str, tables: Tables, name: str) -> Table:
    """UnknownError: there is none of that name."""
    if name not in tables:
        raise UnknownError(kind, name, list(tables))
    return tables[name]()
