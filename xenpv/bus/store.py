"""XenBus' STORE interface, version 2 (win-xenbus store.c, store_interface.h).

The client is in store_client.py; here is what a driver sees that asks for the interface. A
path is a prefix, which may be None, and a node. A buffer is to be freed; an event is a task
that is woken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.store_client import (
    DIRECTORY,
    READ,
    RM,
    SET_PERMS,
    TEXT_MAX,
    WRITE,
    StoreClient,
    Transaction,
)
from xenpv.bus.store_transport import REQ, RSP, Watch
from xenpv.errors import LocalProtocolError
from xenpv.xen.loop import Task

__all__ = ["REQ", "RSP", "Buffer", "StoreInterface", "Transaction", "Watch"]

ABSOLUTE_MAX: Final = 3071  # characters of a path that begins with /, or has an empty prefix
RELATIVE_MAX: Final = 2047

# XENBUS_STORE_PERMISSION_MASK: NONE, READ, WRITE, both.
LETTERS: Final = ("n", "r", "w", "b")


class Buffer:
    """What Read and Directory return: `data` ends with the NULs that the driver adds."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def text(self) -> str:
        """Up to the first NUL, as C reads it."""
        return self.data.split(b"\0", 1)[0].decode("utf-8", "replace")

    @property
    def names(self) -> list[str]:
        """The strings up to an empty one."""
        names: list[str] = []
        for name in self.data.split(b"\0"):
            if not name:
                break
            names.append(name.decode("utf-8", "replace"))
        return names


class StoreInterface(StoreClient):
    """STORE of one guest: what its own drivers call, and the operations of version 2."""

    NAME = "STORE"
    GUID = "86824C3B-D34E-4753-B281-2F1E3AD214D7"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {
        2: (
            "free",
            "read",
            "printf",
            "permissions_set",
            "remove",
            "directory",
            "transaction_start",
            "transaction_end",
            "watch_add",
            "watch_remove",
            "poll",
        )
    }
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {
        (2, name): f"store_{name}" for name in OPERATIONS[2] if name != "transaction_start"
    }

    _buffers: dict[Buffer, None]

    def _start(self) -> None:
        if not self._is_up:
            self._buffers = {}
        super()._start()

    def _stop(self) -> None:
        super()._stop()
        self._buffers.clear()

    def leftovers(self) -> list[str]:
        return super().leftovers() + [f"a buffer of {len(one.data)} bytes" for one in self._buffers]

    def _buffer(self, data: bytes) -> Buffer:
        buffer = Buffer(data)
        self._buffers[buffer] = None
        return buffer

    def buffers(self) -> list[Buffer]:
        """Those that nobody freed, in the order of their making; for dumps."""
        return list(self._buffers)

    @staticmethod
    def _path(prefix: str | None, node: str) -> bytes:
        """With its NUL. INVALID_BUFFER_SIZE if it is too long."""
        path = node if prefix is None else f"{prefix}/{node}"
        path = path.split("\0", 1)[0]
        text = path.encode()
        most = ABSOLUTE_MAX if path.startswith("/") else RELATIVE_MAX
        if len(text) > most:
            reason = f"a path of {len(text)} characters, {most} fit"
            raise NtStatusError(NTSTATUS.INVALID_BUFFER_SIZE, reason)
        return text + b"\0"

    # operations

    def store_free(self, buffer: Buffer) -> None:
        if buffer not in self._buffers:
            raise LocalProtocolError("the buffer is not STORE's, or is free already")
        del self._buffers[buffer]

    def store_read(self, transaction: Transaction | None, prefix: str | None, node: str) -> Buffer:
        tx_id = self._tx_id(transaction)
        return self._buffer(self.request(READ, self._path(prefix, node), tx_id) + b"\0")

    def store_printf(
        self,
        transaction: Transaction | None,
        prefix: str | None,
        node: str,
        text: str,
        *arguments: object,
    ) -> None:
        """INVALID_BUFFER_SIZE for more than 1,023 characters. `text` is a format of Python's."""
        written = (text % arguments if arguments else text).split("\0", 1)[0].encode()
        if len(written) > TEXT_MAX:
            reason = f"{len(written)} characters of text, {TEXT_MAX} fit"
            raise NtStatusError(NTSTATUS.INVALID_BUFFER_SIZE, reason)
        tx_id = self._tx_id(transaction)
        self.request(WRITE, self._path(prefix, node) + written, tx_id)

    def store_permissions_set(
        self,
        transaction: Transaction | None,
        prefix: str | None,
        node: str,
        permissions: Sequence[tuple[int, int]],
    ) -> None:
        """(domid, mask) each, the owner first. INVALID_PARAMETER for a mask above READ|WRITE."""
        payload = self._path(prefix, node)
        for domid, mask in permissions:
            if not 0 <= mask < len(LETTERS):
                raise NtStatusError(NTSTATUS.INVALID_PARAMETER, f"no permission mask {mask:#x}")
            payload += f"{LETTERS[mask]}{domid}\0".encode()
        self.request(SET_PERMS, payload, self._tx_id(transaction))

    def store_remove(self, transaction: Transaction | None, prefix: str | None, node: str) -> None:
        tx_id = self._tx_id(transaction)
        self.request(RM, self._path(prefix, node), tx_id)

    def store_directory(
        self, transaction: Transaction | None, prefix: str | None, node: str
    ) -> Buffer:
        """OBJECT_PATH_NOT_FOUND for an empty one; UNSUCCESSFUL for one beyond one reply."""
        tx_id = self._tx_id(transaction)
        names = self.request(DIRECTORY, self._path(prefix, node), tx_id)
        if not names:
            raise NtStatusError(NTSTATUS.OBJECT_PATH_NOT_FOUND, f"{node} is empty")
        return self._buffer(names + b"\0\0")

    def store_transaction_end(self, transaction: Transaction, commit: bool) -> None:
        """RETRY on a conflict and after a suspend; the handle is free then too."""
        if not self.transaction_end(transaction, commit=bool(commit)):
            raise NtStatusError(NTSTATUS.RETRY, "a conflict, or a suspend since its start")

    def store_watch_add(self, prefix: str | None, node: str, event: Task) -> Watch:
        """`event` is woken once now, at each change, and once after a suspend."""
        path = self._path(prefix, node)[:-1].decode()
        return self.watch_add(path, event)

    def store_watch_remove(self, watch: Watch) -> None:
        if self._watches.get(watch.id) is not watch:
            raise LocalProtocolError(f"the watch of {watch.path} is removed already")
        self.watch_remove(watch)

    def store_poll(self) -> None:
        """Let xenstored answer, and read what it says."""
        self._evtchn.poll(self.channel)
        self._event()
