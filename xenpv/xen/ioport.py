"""I/O ports of a domain: an access goes to the device model that has the port, if any.

hvm_process_io_intercept and ioreq servers, arch/x86/hvm; Xen itself has port 0xE9. The vcpu
waits for its device model, so an access is complete when the call returns; a device model may
not raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.errors import LocalProtocolError
from xenpv.xen.console import DEBUGCONS_PORT

if TYPE_CHECKING:
    from xenpv.abi.pci import IdeDrive, PciFunction
    from xenpv.xen.domain import Domain

PORT_MAX: Final = 0xFFFF
SIZES: Final = (1, 2, 4)  # bytes of an access


class DeviceModel(Protocol):
    """What emulates devices for a domain: QEMU in the control domain."""

    def io_read(self, port: int, size: int) -> int:
        """A value of `size` bytes; what is above them is cut off."""

    def io_write(self, port: int, size: int, value: int) -> None: ...

    def io_write_string(self, port: int, data: bytes) -> None:
        """REP OUTSB: as so many writes of one byte."""

    def functions(self) -> Sequence[PciFunction]:
        """What configuration cycles on PCI bus 0 find now."""

    def drives(self) -> Sequence[IdeDrive]:
        """What answers on its IDE channels now."""


class IoPorts:
    """The port space of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.models: list[DeviceModel] = []
        self.ranges: list[tuple[int, int, DeviceModel]] = []  # first port, how many, whose

    def attach(self, model: DeviceModel) -> None:
        """XEN_DMOP_create_ioreq_server: its devices are on the domain's buses from now on."""
        self.models.append(model)

    def claim(self, model: DeviceModel, first: int, count: int) -> None:
        """XEN_DMOP_map_io_range_to_ioreq_server. LocalProtocolError if a port is taken."""
        if not 0 <= first <= first + count - 1 <= PORT_MAX:
            raise LocalProtocolError(
                f"ports {first:#x}+{count}: expected ports up to {PORT_MAX:#x}"
            )
        for start, length, _model in self.ranges:
            if first < start + length and start < first + count:
                raise LocalProtocolError(f"ports {first:#x}+{count}: {start:#x}+{length} is taken")
        self.ranges.append((first, count, model))

    def find(self, port: int) -> DeviceModel | None:
        """Whose that port is."""
        for first, count, model in self.ranges:
            if first <= port < first + count:
                return model
        return None

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes; all ones where there is nothing."""
        self._check(port, size)
        model = self.find(port)
        ones = (1 << 8 * size) - 1
        return ones if model is None else model.io_read(port, size) & ones

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; nothing happens where there is nothing."""
        self._check(port, size)
        if not 0 <= value < 1 << 8 * size:
            raise LocalProtocolError(f"port {port:#x}: {value:#x} does not fit {size} bytes")
        if port == DEBUGCONS_PORT and size == 1:
            self.domain.debugcons(bytes((value,)))
            return
        model = self.find(port)
        if model is not None:
            model.io_write(port, size, value)

    def write_string(self, port: int, data: bytes) -> None:
        """REP OUTSB."""
        self._check(port, 1)
        if port == DEBUGCONS_PORT:
            self.domain.debugcons(data)
            return
        model = self.find(port)
        if model is not None:
            model.io_write_string(port, data)

    def functions(self) -> list[PciFunction]:
        """What is on PCI bus 0, of every device model."""
        found: list[PciFunction] = []
        for model in self.models:
            found += model.functions()
        return found

    def drives(self) -> list[IdeDrive]:
        """What is on the channels of the IDE controller."""
        found: list[IdeDrive] = []
        for model in self.models:
            found += model.drives()
        return found

    @staticmethod
    def _check(port: int, size: int) -> None:
        if size not in SIZES or not 0 <= port <= PORT_MAX:
            raise LocalProtocolError(
                f"{size} bytes at port {port:#x}: expected 1, 2 or 4 up to port {PORT_MAX:#x}"
            )
