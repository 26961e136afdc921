"""Store keys: who writes each, with what value, and who reads it, as heard while devices connect.

A table is made of recordings of every frontend with every backend; its words (type, default,
meaning) stand in text/keys.toml, and a key without words fails the build.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Final

import attrs

from xenpv import Platform
from xenpv.abi.xs import XS

from . import texts, traces
from .charts import DRIVERS
from .table import Table
from .texts import UnknownError
from .traces import BACKENDS, FRONTENDS, Asked, Run

QUEUE: Final = re.compile(r"queue-\d+/")
PAGE: Final = re.compile(r"ring-ref\d+$")
READS: Final = (XS.READ, XS.WATCH)


@attrs.define
class Key:
    """`values`: by writer, in the order in which they were heard; `readers` likewise."""

    name: str
    values: dict[str, dict[str, None]] = attrs.Factory(dict)
    readers: dict[str, None] = attrs.Factory(dict)
    whens: dict[str, dict[str, None]] = attrs.Factory(dict)  # by writer


def generic(key: str) -> str:
    """Without the number of a queue or page."""
    return PAGE.sub("ring-refM", QUEUE.sub("queue-N/", key))


def actor(run: Run, who: str) -> str:
    """`XenVif`, `qemu`, `toolstack`."""
    if who == "frontend":
        return DRIVERS[run.kind, run.frontend]
    return run.backend if who == "backend" else "toolstack"


def _runs(kind: str) -> Iterator[Run]:
    for frontend in FRONTENDS:
        for backend in BACKENDS[kind]:
            for scene in traces.SCENES:
                yield traces.run(kind, frontend, backend, scene)


@cache
def heard(kind: str, end: str) -> Mapping[str, Key]:
    """Every key of that end's directory that anybody asked for."""
    found: dict[str, Key] = {}
    for run in _runs(kind):
        states = {"frontend": "", "backend": ""}
        for one in run.asked:
            if one.key == "state" and one.op is XS.WRITE and one.who in states:
                states[one.who] = one.value or ""
            if one.end == end and one.key and one.key != "state":
                _note(found.setdefault(generic(one.key), Key(generic(one.key))), run, one, states)
    return found


def _note(key: Key, run: Run, one: Asked, states: Mapping[str, str]) -> None:
    who = actor(run, one.who)
    if one.op is XS.WRITE and not one.error:
        key.values.setdefault(who, {})[one.value or ""] = None
        key.whens.setdefault(who, {})[_when(one, states)] = None
    elif one.op in READS:
        key.readers[who] = None


def _when(one: Asked, states: Mapping[str, str]) -> str:
    """What the writer had in its own `state` then."""
    if one.who == "toolstack":
        return "creation" if one.tx else "hotplug script"
    return f"state {states[one.who] or 1}"


# What the tables are: whose directory, and whose keys in it.
TABLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "vif-toolstack": ("vif", "both", "toolstack"),
    "netback": ("vif", "backend", "backend"),
    "netfront": ("vif", "frontend", "frontend"),
    "vbd-toolstack": ("vbd", "both", "toolstack"),
    "blkback": ("vbd", "backend", "backend"),
    "blkfront": ("vbd", "frontend", "frontend"),
}


def compact(found: Table) -> Table:
    """The same in fewer columns, for a page: type, meaning and absence in one."""
    at = found.columns.index("type")
    assert found.columns[at:] == ("type", "meaning", "if absent")
    rows = []
    for row in found.rows:
        kind, meaning, absent = row[at:]
        told = f"{kind}: {meaning}" if kind else meaning
        rows.append((*row[:at], f"{told}. Absent: {absent}." if absent else f"{told}."))
    return Table((*found.columns[:at], "type and meaning"), tuple(rows))


def columns_of(kind: str, writer: str) -> tuple[str, ...]:
    if writer == "toolstack":
        return ("toolstack",)
    if writer == "backend":
        return BACKENDS[kind]
    return tuple(DRIVERS[kind, one] for one in FRONTENDS)


def table(name: str) -> Table:
    """UnknownError: no such table, or a key without words."""
    if name not in TABLES:
        raise UnknownError("table of keys", name, TABLES)
    kind, end, writer = TABLES[name]
    writers = columns_of(kind, writer)
    rows = []
    for where in ("frontend", "backend") if end == "both" else (end,):
        for key in heard(kind, where).values():
            told = {one: key.values[one] for one in writers if one in key.values}
            unwritten = not key.values and where == writer
            if told or unwritten:
                rows.append(_row(kind, where, key, writers, end))
    columns = ("key", "in", *writers, "written", "read by", "type", "meaning", "if absent")
    return Table(columns, tuple(rows)).without_empty()


def _row(kind: str, where: str, key: Key, writers: tuple[str, ...], end: str) -> tuple[str, ...]:
    words = texts.of("key", f"{kind}-{where}")
    name = key.name.removeprefix("queue-N/")
    if name not in words:
        raise UnknownError(f"words in key.{kind}-{where}", name, words)
    said = words[name]
    values = [_values(key.values.get(one, {}), said.get("type", "")) for one in writers]
    readers = ", ".join(one for one in key.readers if one not in key.values)
    whens = ", ".join(dict.fromkeys(when for one in writers for when in key.whens.get(one, {})))
    return (
        f"`{key.name}`", where if end == "both" else "", *values, whens, readers,
        said.get("type", ""), said["meaning"], said.get("absent", ""),
    )  # fmt: skip


# Types of which a value says nothing: any other run would have another.
COUNTED: Final = ("reference", "port", "path", "domid", "MAC address")


def _values(values: Mapping[str, None], kind: str) -> str:
    """What was written, or a dot where any number would do as well."""
    if not values:
        return ""
    if kind in COUNTED:
        return "yes"
    return ", ".join(f"`{one}`" if one else "empty" for one in values)


# a domain's own tree


@cache
def home() -> tuple[tuple[str, str, str], ...]:
    """(path below the home, value, permissions) of a new HVM domain without devices."""
    with Platform(seed=1) as xen:
        guest = xen.create(name="guest")
        found = list(_nodes(xen.toolstack.xs.connection.call, f"/local/domain/{guest.domid}", ""))
    return tuple(found)


def _nodes(
    call: Callable[[int, bytes], bytes], root: str, below: str
) -> Iterator[tuple[str, str, str]]:
    path = f"{root}/{below}".rstrip("/").encode() + b"\0"
    perms = call(XS.GET_PERMS, path).decode().rstrip("\0").split("\0")
    value = call(XS.READ, path).decode()
    yield below, value, " ".join(perms)
    for name in call(XS.DIRECTORY, path).decode().split("\0")[:-1]:
        yield from _nodes(call, root, f"{below}/{name}".lstrip("/"))


def home_table() -> Table:
    words = texts.of("key", "home")
    rows = []
    for path, _value, perms in home():
        name = re.sub(r"(?<=/)\d+(?=/|$)", "N", path)
        if name not in words:
            raise UnknownError("words in key.home", name, words)
        rows.append((f"`~/{name}`" if name else "`~`", f"`{perms}`", words[name]))
    return Table(("node", "permissions", "meaning"), tuple(rows))
