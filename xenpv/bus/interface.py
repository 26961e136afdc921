"""What every XenBus interface has: a GUID, versions, a reference count, a check for leftovers.

A driver asks for one by GUID, version and size (IRP_MN_QUERY_INTERFACE) and gets an
`InterfaceVersion`, whose operations answer NTSTATUS as the Windows drivers do. Our own drivers
call the implementation, an `Interface`, and get this package's exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.errors import GrantError, HypercallError, LocalProtocolError, StoreError

# INTERFACE of wdm.h: size, version, context and two functions, on x64.
HEADER_SIZE: Final = 32
POINTER_SIZE: Final = 8


class Interface:
    """An implementation. The first reference starts it, the last stops it.

    `OPERATIONS` has, for each version, what stands in the structure after Acquire and
    Release, in its order. A version's operation is the method of that name, or the one that
    `ADAPTED` names for it.
    """

    NAME: ClassVar[str]
    GUID: ClassVar[str]
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]]
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {}

    references = 0

    def acquire(self) -> None:
        """One more reference. Raises what stopped it from starting; then there is none more."""
        if not self.references:
            self._start()
        self.references += 1

    def release(self) -> None:
        """One reference fewer. The last one finds what its owners left: LocalProtocolError.

        The drivers bugcheck then. It is stopped all the same.
        """
        if not self.references:
            raise LocalProtocolError(f"{self.NAME} is released more often than acquired")
        self.references -= 1
        if self.references:
            return
        left = self.leftovers()
        self._stop()
        if left:
            raise LocalProtocolError(f"{self.NAME} is released with {', '.join(left)}")

    def leftovers(self) -> list[str]:
        """What is open, one text each ("channel of port 5"): empty when nothing leaks."""
        return []

    def _start(self) -> None:
        """To the first reference."""

    def _stop(self) -> None:
        """After the last reference: nothing of it stays at the hypervisor or in the store."""


class InterfaceVersion:
    """One version of an interface, as QUERY_INTERFACE fills it in.

    Every operation of that version is an attribute. A failure is an NtStatusError; using it
    before Acquire or after Release is a LocalProtocolError.
    """

    def __init__(self, interface: Interface, version: int) -> None:
        self.interface = interface
        self.version = version
        self.operations = tuple(interface.OPERATIONS[version])
        self.acquired = 0

    @property
    def size(self) -> int:
        """Of its structure on x64, in bytes."""
        return structure_size(self.interface, self.version)

    def acquire(self) -> None:
        """Raises NtStatusError."""
        self._call("Acquire", self.interface.acquire)
        self.acquired += 1

    def release(self) -> None:
        if not self.acquired:
            raise LocalProtocolError(f"{self.interface.NAME} is released before it is acquired")
        self.acquired -= 1
        self.interface.release()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self.operations:
            raise AttributeError(f"{self.interface.NAME} v{self.version} has no {name}")
        if not self.acquired:
            raise LocalProtocolError(f"{self.interface.NAME} {name}: it is not acquired")
        method = self.interface.ADAPTED.get((self.version, name), name)
        return partial(self._call, name, getattr(self.interface, method))

    def _call(self, name: str, method: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        try:
            return method(*args, **kwargs)
        except (HypercallError, GrantError, StoreError) as error:
            operation = f"{self.interface.NAME} {name}"
            raise NtStatusError(status_of(error), str(error), operation=operation) from error


def structure_size(interface: Interface, version: int) -> int:
    """Bytes of the structure of one version: the header, Acquire, Release, the operations."""
    return HEADER_SIZE + POINTER_SIZE * (2 + len(interface.OPERATIONS[version]))


def query_interface(
    interfaces: Sequence[Interface], guid: str, version: int, size: int | None = None
) -> InterfaceVersion:
    """IRP_MN_QUERY_INTERFACE: NOT_SUPPORTED for an unknown GUID or version, BUFFER_OVERFLOW.

    `size` is that of the caller's buffer; None for one that is large enough.
    """
    found = next((one for one in interfaces if guid.upper() == one.GUID), None)
    if found is None:
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"no interface {guid}")
    if version not in found.OPERATIONS:
        known = ", ".join(map(str, found.OPERATIONS))
        reason = f"version {version} is not one of {known}"
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, reason, operation=found.NAME)
    needed = structure_size(found, version)
    if size is not None and size < needed:
        reason = f"{size} bytes, version {version} has {needed}"
        raise NtStatusError(NTSTATUS.BUFFER_OVERFLOW, reason, operation=found.NAME)
    return InterfaceVersion(found, version)
