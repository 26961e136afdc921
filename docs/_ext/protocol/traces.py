"""Recordings of real handshakes: who asked the store for what, while a platform connected.

A platform is built and its guest started, with a listener in xenstored. Charts and key tables
are made from what it heard, not from what anybody thinks that drivers write.
"""

from __future__ import annotations

import sys
from functools import cache
from types import FrameType
from typing import Any, Final

import attrs

from xenpv import Disk, Platform, Vif
from xenpv.abi.xs import XS
from xenpv.host.image import MemoryImage
from xenpv.vbd.parameters import Parameters

from .texts import UnknownError

FRONTENDS: Final = ("windows", "linux")
BACKENDS: Final = {
    "vif": ("linux", "qemu", "mirage"),
    "vbd": ("linux", "qemu", "tapdisk", "mirage"),
}
# Where the toolstack makes a device's directory, below backend/.
DIRECTORIES: Final = {"vif": ("vif",), "vbd": ("vbd", "qdisk", "vbd3")}
SCENES: Final = ("one queue", "two queues", "options")
WRITES: Final = (XS.WRITE, XS.MKDIR, XS.RM)


@attrs.frozen
class Asked:
    """One request: `who` is frontend, backend or toolstack, `key` a path below `end`'s directory.

    `end` is whose directory it is: frontend or backend. `tx` is 0 outside a transaction; `value`
    None for what only reads.
    """

    who: str
    op: XS
    end: str
    key: str
    value: str | None
    tx: int
    error: str


@attrs.frozen
class Run:
    """A device that connected: `asked` in order, `connected` whether it did."""

    kind: str
    frontend: str
    backend: str
    scene: str
    asked: tuple[Asked, ...]
    connected: bool


class _Listener:
    """xenstored's trace sink; `homes` are the directories of the device, by end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.asked: list[Asked] = []

    def store_op(
        self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        path, _, value = payload.partition(b"\0")
        found = self._place(conn_domid, path.decode("utf-8", "replace"))
        if op == XS.TRANSACTION_END:
            found = ("", "")
        if found is None or (found == ("", "") and not self._is_open(conn_domid, tx_id)):
            return
        said = value.decode("utf-8", "replace") if op == XS.WRITE else None
        who = "frontend" if conn_domid else _dom0_actor()
        name = "" if error is None else error.decode()
        self.asked.append(Asked(who, XS(op), *found, said, tx_id, name))

    def _is_open(self, domid: int, tx_id: int) -> bool:
        """Whether the device was asked about in that transaction."""
        who = "frontend" if domid else _dom0_actor()
        mine = [one for one in self.asked if one.who == who and one.tx == tx_id]
        return bool(mine) and mine[-1].op is not XS.TRANSACTION_END

    def _place(self, domid: int, path: str) -> tuple[str, str] | None:
        """(end, key) of a node of the device."""
        parts = path.split("/") if path.startswith("/") else ["", "local", "domain", str(domid),
                                                              *path.split("/")]  # fmt: skip
        below = parts[4:]
        if below[:1] == ["backend"] and below[1:2] and below[1] in DIRECTORIES[self.kind]:
            return "backend", "/".join(below[4:])
        if below[:2] == ["device", self.kind] and len(below) >= 3:
            return "frontend", "/".join(below[3:])
        return None


def _dom0_actor() -> str:
    """Of a request from dom0: the package that it comes from."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("xenpv.back."):
            return "backend"
        if name.startswith("xenpv.host."):
            return "toolstack"
        frame = frame.f_back
    return "toolstack"


def check(kind: str, frontend: str, backend: str) -> None:
    for what, name, known in (
        ("device", kind, tuple(BACKENDS)),
        ("frontend", frontend, FRONTENDS),
        ("backend", backend, BACKENDS.get(kind, ())),
    ):
        if name not in known:
            raise UnknownError(what, name, known)


def _device(kind: str, scene: str) -> dict[str, Any]:
    """The device of a run, as Platform.create takes it."""
    options = scene == "options"
    if kind == "vif":
        full = Vif(mtu=9000, rate=(1_000_000, 20_000), vlan="10", ip="192.0.2.7/24")
        return {"vifs": [full if options else Vif()]}
    parameters = Parameters(ring_page_order=1, persistent=True) if options else None
    return {"disks": [Disk(MemoryImage(bytearray(1 << 20)))], "vbd": parameters}


@cache
def run(kind: str, frontend: str, backend: str, scene: str = "one queue") -> Run:
    """Build it, start it, and say what was asked. UnknownError: no such device, frontend, backend.

    `scene`: one of SCENES; "two queues" has two vcpus in both domains, "options" all that a
    configuration may say of a device, and rings of two pages.
    """
    check(kind, frontend, backend)
    listener = _Listener(kind)
    vcpus = 2 if scene == "two queues" else 1
    profiles = {"netback" if kind == "vif" else "blkback": backend}
    with Platform(seed=1, dom0_vcpus=vcpus, **profiles) as xen:  # type: ignore[arg-type]
        xen.xenstored.trace = listener
        guest = xen.create(name="guest", vcpus=vcpus, personality=frontend, **_device(kind, scene))
        guest.start()
        states = [xen.toolstack.xs.read(f"{one.backend_path}/state")
                  for one in guest.created.devices if one.kind == kind]  # fmt: skip
        xen.xenstored.trace = None
    return Run(kind, frontend, backend, scene, tuple(listener.asked), states == ["4"])
