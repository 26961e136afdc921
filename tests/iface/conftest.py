"""A guest with XENIFACE, and what a caller of it does."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from xenpv import Guest, Platform
from xenpv.errors import StoreError
from xenpv.iface import wmi
from xenpv.iface.device import XenIface
from xenpv.iface.wnode import HEADER, METHOD_ITEM, MethodItem, Writer

HOME = "/local/domain/1"
SESSION = r"XP0001 XENBUS IFACE\Session_test_0"


@attrs.define(eq=False)
class Scene:
    xen: Platform
    guest: Guest

    @property
    def iface(self) -> XenIface:
        return self.guest.iface

    def write(self, path: str, value: str) -> None:
        """As dom0, below the guest's home."""
        self.xen.toolstack.xs.write(f"{HOME}/{path}", value)

    def read(self, path: str) -> str:
        return self.xen.toolstack.xs.read(f"{HOME}/{path}")

    def wmi(self, method: int, *arguments: str, instance: str = SESSION, room: int = 4096):
        """A method of XenStoreSession by its buffers: status, node."""
        writer = Writer()
        for argument in arguments:
            writer.string(argument)
        guid = wmi.SESSION.guid
        buffer = MethodItem(instance, method, 0, bytes(writer.data), 0).emit(guid.bytes_le)
        return self.iface.wmi.request(9, guid, buffer, len(buffer) + room)

    def refuse(self, monkeypatch: pytest.MonkeyPatch, operation: str, name: str) -> None:
        """The store answers one kind of request with this error from now on."""

        def refused(*_arguments: object, **_named: object) -> None:
            raise StoreError(name)

        monkeypatch.setattr(self.guest.bus.store, operation, refused)


def make() -> Scene:
    xen = Platform(seed=4)
    return Scene(xen, xen.create(name="g").start())


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = make()
    yield made
    made.xen.close()


def data_at(node: bytes) -> bytes:
    """What a method answered."""
    fields = METHOD_ITEM.unpack_from(node, HEADER.size)
    return node[fields[3] : fields[3] + fields[4]]
