"""Slots of a ring in the words of Xen's headers: operations, flags and status by name."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import partial
from typing import Final

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.netif import (
    NETIF_RSP,
    NETRXF,
    NETTXF,
    XEN_NETIF_CTRL_STATUS,
    XEN_NETIF_CTRL_TYPE,
    XEN_NETIF_EXTRA_TYPE,
)
from xenpv.view.rings import fields

Value = int | str
EXTRA: Final = "netif_extra_info"
BLKIF: Final = ("blkif", "blkif_x86_32")


def values(struct: str, data: bytes) -> dict[str, int]:
    """Every scalar of a slot's bytes decoded as `struct`, unsigned."""
    return {
        name: int.from_bytes(data[at : at + size], "little") for name, at, size in fields(struct)
    }


def counted(count: int, what: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def signed(value: int, bits: int = 16) -> int:
    """A field that the header declares as signed."""
    half = 1 << bits - 1
    return (value ^ half) - half


def _name(enum: type[IntEnum], value: int, prefix: str = "") -> Value:
    """As the header has it; the number of one that it has not."""
    try:
        return f"{prefix or enum.__name__ + '_'}{enum(value).name}"
    except ValueError:
        return value


def _flags(enum: type[IntFlag], value: int) -> Value:
    """The names of the bits joined by `|`, other bits in hexadecimal; 0 of none."""
    names = [f"{enum.__name__}_{one.name}" for one in enum if value & one]
    rest = value & ~sum(enum)
    return "|".join([*names, *([f"{rest:#x}"] if rest else [])]) or 0


def _rx_status(value: int) -> Value:
    """A length in bytes, or an error."""
    status = signed(value)
    return status if status >= 0 else _name(NETIF_RSP, status)


Say = Callable[[int], Value]
_OPERATION: Final[Say] = partial(_name, BLKIF_OP)


def _status(enum: type[IntEnum], value: int) -> Value:
    return _name(enum, signed(value))


# struct: {field: how it reads}
SAY: Final[dict[str, dict[str, Say]]] = {
    "blkif_request": {"operation": _OPERATION, "indirect_op": _OPERATION},
    "blkif_response": {"operation": _OPERATION, "status": partial(_status, BLKIF_RSP)},
    "netif_tx_request": {"flags": partial(_flags, NETTXF)},
    "netif_tx_response": {"status": partial(_status, NETIF_RSP)},
    "netif_rx_request": {},
    "netif_rx_response": {"flags": partial(_flags, NETRXF), "status": _rx_status},
    "xen_netif_ctrl_request": {"type": partial(_name, XEN_NETIF_CTRL_TYPE)},
    "xen_netif_ctrl_response": {
        "type": partial(_name, XEN_NETIF_CTRL_TYPE),
        "status": partial(_name, XEN_NETIF_CTRL_STATUS),
    },
    EXTRA: {"type": partial(_name, XEN_NETIF_EXTRA_TYPE)},
}
# The request of an operation that has a layout of its own.
LAYOUTS: Final[dict[int, str]] = {
    BLKIF_OP.DISCARD: "blkif_request_discard",
    BLKIF_OP.INDIRECT: "blkif_request_indirect",
}


def request(kind: str, struct: str, data: bytes) -> dict[str, Value]:
    """A request's fields; segments and padding that mean nothing are left out."""
    if kind in BLKIF:
        suffix = struct.removeprefix("blkif_request")
        layout = f"{LAYOUTS.get(data[0], 'blkif_request')}{suffix}"
        struct = layout if fields(layout) else struct
    found = values(struct, data)
    count = found.get("nr_segments", 0)
    if struct.startswith("blkif_request_indirect"):
        count = -(-count // 512)  # segments in a page of them
    shown = {name: value for name, value in found.items() if _counts(name, count)}
    return _say(struct, shown)


def _counts(name: str, count: int) -> bool:
    """Whether an element of a request's array is one of the `count` that it has."""
    array, _, rest = name.partition("[")
    if array.startswith("_") or ".pad" in name:
        return False
    return array not in ("seg", "indirect_grefs") or int(rest.partition("]")[0]) < count


def response(struct: str, data: bytes) -> dict[str, Value]:
    """A response's fields."""
    return _say(struct, values(struct, data))


def extra_info(data: bytes) -> dict[str, Value]:
    """A slot with more about the packet before it."""
    kind = data[0]
    union = {1: "u.gso.", 2: "u.mcast.", 3: "u.mcast.", 4: "u.hash."}.get(kind, "-")
    found = values(EXTRA, data)
    shown = {
        name: value
        for name, value in found.items()
        if "." not in name or (name.startswith(union) and ".pad" not in name)
    }
    return {**shown, "type": _name(XEN_NETIF_EXTRA_TYPE, kind)}


def _say(struct: str, found: dict[str, int]) -> dict[str, Value]:
    base = "blkif_request" if struct.startswith("blkif_request") else struct
    say = SAY.get(base.removesuffix("_x86_32"), {})
    return {name: say[name](value) if name in say else value for name, value in found.items()}
