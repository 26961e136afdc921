"""What the bytes of a slot are called: the structs of each ring, and which one a slot holds.

The page is given each struct as a table of fields, and of each slot the number of its struct;
so what it shows is what Python decided, by the layouts that the C compiler proved.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import ctype
from xenpv.abi.netif import (
    NETIF_RSP,
    NETRXF,
    NETTXF,
    XEN_NETIF_CTRL_STATUS,
    XEN_NETIF_CTRL_TYPE,
    XEN_NETIF_EXTRA_TYPE,
    XEN_NETIF_GSO_TYPE,
)
from xenpv.view.rings import fields
from xenpv.view.tape import Publication, TapedRing

Names = type[IntEnum] | type[IntFlag]

_BLKIF: Final[dict[str, Names]] = {
    "operation": BLKIF_OP, "indirect_op": BLKIF_OP, "status": BLKIF_RSP,
}  # fmt: skip
# struct, without its suffix: {field: how its value reads}
READ_AS: Final[dict[str, dict[str, Names]]] = {
    "blkif_request": _BLKIF,
    "blkif_request_discard": _BLKIF,
    "blkif_request_indirect": _BLKIF,
    "blkif_response": _BLKIF,
    "netif_tx_request": {"flags": NETTXF},
    "netif_tx_response": {"status": NETIF_RSP},
    "netif_rx_response": {"flags": NETRXF, "status": NETIF_RSP},
    "netif_extra_info": {"type": XEN_NETIF_EXTRA_TYPE, "u.gso.type": XEN_NETIF_GSO_TYPE},
    "xen_netif_ctrl_request": {"type": XEN_NETIF_CTRL_TYPE},
    "xen_netif_ctrl_response": {"type": XEN_NETIF_CTRL_TYPE, "status": XEN_NETIF_CTRL_STATUS},
}
# A response's positive status is a length in bytes, so 0 is one too (io/netif.h).
_LENGTHS: Final = {("netif_rx_response", "status")}
# struct: (array, the field that says how many of it are in use, how many one of these counts)
IN_USE: Final = {
    "blkif_request": ("seg", "nr_segments", 1),
    # An indirect page holds 512 segments of 8 bytes (io/blkif.h).
    "blkif_request_indirect": ("indirect_grefs", "nr_segments", 512),
}
# ABI of a 32-bit guest: the same fields elsewhere.
SUFFIX: Final = "_x86_32"
OPERATION: Final = 0  # of every blkif request
OTHER_REQUESTS: Final[dict[int, str]] = {
    BLKIF_OP.DISCARD: "blkif_request_discard",
    BLKIF_OP.INDIRECT: "blkif_request_indirect",
}
MORE: Final = int(lib.XEN_NETIF_EXTRA_FLAG_MORE)
# An extra's union, by its type: what view.rings leaves whole, being a union.
EXTRA: Final[dict[int, str]] = {
    XEN_NETIF_EXTRA_TYPE.GSO: "u.gso",
    XEN_NETIF_EXTRA_TYPE.MCAST_ADD: "u.mcast",
    XEN_NETIF_EXTRA_TYPE.MCAST_DEL: "u.mcast",
    XEN_NETIF_EXTRA_TYPE.HASH: "u.hash",
}
RAW: Final = "bytes"


@attrs.frozen
class Field:
    """One scalar: offset and size in bytes; `read_as` is a number in Structs.enums, or -1."""

    name: str
    offset: int
    size: int
    signed: bool
    read_as: int


class Structs:
    """The structs that a tape's slots turned out to hold, by number, and their enums."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self.enums: list[tuple[Names, bool]] = []  # (names, whether 0 and more are lengths)

    def number(self, struct: str, member: str = "") -> int:
        """Of a struct, whose union is to be read as `member`."""
        return self._numbers.setdefault((struct, member), len(self._numbers))

    def document(self) -> list[list[Any]]:
        """[name, [[field, offset, size, signed, enum]], in use] of each."""
        return [
            [name, [attrs.astuple(field) for field in self._fields(name, member)], _in_use(name)]
            for name, member in self._numbers
        ]

    def enum_document(self) -> list[list[Any]]:
        """[name, whether a value is a sum of bits, {value: name}] of each."""
        return [
            [
                names.__name__,
                issubclass(names, IntFlag),
                {str(int(one)): one.name for one in names if one < 0 or not length},
            ]
            for names, length in self.enums
        ]

    def _fields(self, struct: str, member: str) -> list[Field]:
        if struct == RAW:
            return []
        plain = struct.removesuffix(SUFFIX)
        read_as = READ_AS.get(plain, {})
        found = []
        for name, offset, size in _leaves(struct, member):
            names = read_as.get(name)
            enum = -1 if names is None else self._enum(names, (plain, name) in _LENGTHS)
            found.append(Field(name, offset, size, _signed(struct, name), enum))
        return found

    def _enum(self, names: Names, length: bool) -> int:
        if (names, length) not in self.enums:
            self.enums.append((names, length))
        return self.enums.index((names, length))


def _in_use(struct: str) -> list[Any]:
    return list(IN_USE.get(struct.removesuffix(SUFFIX), ()))


def _leaves(struct: str, member: str) -> list[tuple[str, int, int]]:
    """Those of view.rings, and those of one member of the union."""
    found = list(fields(struct))
    if member:
        of, base = ctype(struct), 0
        for name in member.split("."):
            field = dict(of.fields)[name]
            of, base = field.type, base + field.offset
        for name, field in of.fields:
            at = base + field.offset
            if field.type.kind == "array":
                found += [(f"{member}.{name}[{i}]", at + i, 1) for i in range(field.type.length)]
            else:
                found.append((f"{member}.{name}", at, ffi.sizeof(field.type)))
    return found


def _signed(struct: str, path: str) -> bool:
    """Whether the C type of a field is a signed one."""
    of = ctype(struct)
    for part in path.split("."):
        of = dict(of.fields)[part.partition("[")[0]].type
        while of.kind == "array":
            of = of.item
    return bool(of.kind == "primitive" and of.cname.startswith("int"))


class Reader:
    """Which struct each slot of one ring holds, in the order in which they were published.

    Behind a slot with the flag extra_info come extra infos, the last without the flag more
    (io/netif.h); a publication may end between them.
    """

    def __init__(self, ring: TapedRing, structs: Structs) -> None:
        self._ring = ring
        self._structs = structs
        self._extra = {False: False, True: False}  # by is_response: the next slot is one

    def numbers(self, publication: Publication) -> Iterable[int]:
        """Of each slot its struct's number in Structs."""
        for data in publication.slots:
            yield self._number(data, publication.is_response)

    def _number(self, data: bytes, is_response: bool) -> int:
        ring = self._ring
        struct = ring.response if is_response else ring.request
        if not struct:
            return self._structs.number(RAW)
        if struct.startswith("blkif_request"):
            return self._structs.number(_blkif(struct, data))
        if struct in ("netif_tx_request", "netif_rx_response"):
            if self._extra[is_response]:
                self._extra[is_response] = bool(data[1] & MORE)
                return self._structs.number("netif_extra_info", EXTRA.get(data[0], ""))
            flags = next((at, size) for name, at, size in fields(struct) if name == "flags")
            value = int.from_bytes(data[flags[0] : flags[0] + flags[1]], "little")
            names: type[IntFlag] = NETRXF if is_response else NETTXF
            self._extra[is_response] = bool(value & names["extra_info"])
        return self._structs.number(struct)


def _blkif(struct: str, data: bytes) -> str:
    plain = struct.removesuffix(SUFFIX)
    suffix = struct[len(plain) :]
    other = OTHER_REQUESTS.get(data[OPERATION])
    return struct if other is None else other + suffix
