"""The toolstack's libxenstore: requests of a privileged client, transactions that retry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.connection import Connection

# Plain numbers: a member of an enum is slow to look up by.
XS_DIRECTORY: Final[int] = lib.XS_DIRECTORY
XS_INTRODUCE: Final[int] = lib.XS_INTRODUCE
XS_RELEASE: Final[int] = lib.XS_RELEASE
XS_RESUME: Final[int] = lib.XS_RESUME
XS_RM: Final[int] = lib.XS_RM
XS_SET_PERMS: Final[int] = lib.XS_SET_PERMS
XS_TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END
XS_TRANSACTION_START: Final[int] = lib.XS_TRANSACTION_START
XS_UNWATCH: Final[int] = lib.XS_UNWATCH
XS_WATCH: Final[int] = lib.XS_WATCH

COMMITS_MAX: Final = 1000


class XsHandle:
    """`xs_open()`: every call names a path and may name a transaction (0: none).

    Raises StoreError with the name that xenstored answered.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def read(self, path: str, t: int = 0) -> str | None:
        """A value, or None where there is no node."""
        value = self.connection.read(path.encode(), t)
        return None if value is None else value.decode("utf-8", "replace")

    def directory(self, path: str, t: int = 0) -> list[str]:
        """Children; none where there is no node."""
        try:
            body = self.connection.call(XS_DIRECTORY, path.encode() + b"\0", t)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            return []
        return [name.decode() for name in body.split(b"\0")[:-1]]

    def write(self, path: str, value: str, t: int = 0) -> None:
        self.connection.write(path.encode(), value.encode(), t)

    def write_all(self, path: str, values: Mapping[str, str], t: int = 0) -> None:
        """What a `write` of each `path/key` does, one after the other."""
        self.connection.write_all(path.encode(), values, t)

    def rm(self, path: str, t: int = 0) -> None:
        """Remove a subtree; nothing happens where there is none."""
        try:
            self.connection.call(XS_RM, path.encode() + b"\0", t)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def rm_empty_parents(self, path: str, root: str, t: int = 0) -> None:
        """Remove `path` and then each parent below `root` that is left without children."""
        self.rm(path, t)
        parent = path.rpartition("/")[0]
        while parent.startswith(root + "/") and not self.directory(parent, t):
            self.rm(parent, t)
            parent = parent.rpartition("/")[0]

    def set_permissions(self, path: str, entries: Sequence[str], t: int = 0) -> None:
        payload = "\0".join((path, *entries, "")).encode()
        self.connection.call(XS_SET_PERMS, payload, t)

    def introduce_domain(self, domid: int, gfn: int, port: int) -> None:
        payload = b"%d\0%d\0%d\0" % (domid, gfn, port)
        self.connection.call(XS_INTRODUCE, payload)

    def release_domain(self, domid: int) -> None:
        """Nothing happens where xenstored does not know the domain any more."""
        try:
            self.connection.call(XS_RELEASE, b"%d\0" % domid)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def resume_domain(self, domid: int) -> None:
        """Its next shutdown fires @releaseDomain again."""
        self.connection.call(XS_RESUME, b"%d\0" % domid)

    def watch(self, path: str, token: str) -> None:
        """Its events are in `connection.events`, the first of them at once."""
        self.connection.call(XS_WATCH, f"{path}\0{token}\0".encode())

    def unwatch(self, path: str, token: str) -> None:
        self.connection.call(XS_UNWATCH, f"{path}\0{token}\0".encode())

    def transaction(self, body: Callable[[int], object]) -> None:
        """Run `body(t)` and commit; all of it again after each EAGAIN."""
        for _ in range(COMMITS_MAX):
            t = int(self.connection.call(XS_TRANSACTION_START, b"\0").rstrip(b"\0"))
            try:
                body(t)
            except BaseException:
                self.connection.call(XS_TRANSACTION_END, b"F\0", t)
                raise
            try:
                self.connection.call(XS_TRANSACTION_END, b"T\0", t)
            except StoreError as error:
                if error.name != "EAGAIN":
                    raise
            else:
                return
        raise StoreError("EAGAIN", f"no commit in {COMMITS_MAX} tries")
