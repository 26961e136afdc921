"""A store kept as a file: loaded into a fresh xenstored, written when it ends.

The text is what `xenstore-ls -fp` prints, so a dump of a real host can be served, and what
was served can be compared with one.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xs import XS
from xenpv.errors import ConfigError, StoreError
from xenpv.store.connection import Connection
from xenpv.store.listing import Listed, parse
from xenpv.store.profile import C, Profile
from xenpv.store.server import Xenstored
from xenpv.store.wire import PAYLOAD_MAX

FILE_BYTES_MAX: Final = 256 << 20
DOMID_FIRST_RESERVED: Final[int] = lib.DOMID_FIRST_RESERVED
XS_WRITE: Final = int(XS.WRITE)
XS_SET_PERMS: Final = int(XS.SET_PERMS)


class KnownDomains:
    """The platform under a store without Xen: the domains that somebody named.

    INTRODUCE makes a domain known, and there is no ring to serve it by. `serve` has to come
    before any client.
    """

    def __init__(self, domids: tuple[int, ...] = ()) -> None:
        self._domids = dict.fromkeys(domids)
        self._server: Xenstored

    def serve(self, profile: Profile = C) -> Xenstored:
        """A fresh xenstored over these domains."""
        self._server = Xenstored(domains=self, profile=profile)
        return self._server

    def add(self, domid: int) -> None:
        self._domids[domid] = None

    def exists(self, domid: int) -> bool:
        return domid in self._domids

    def unique_id(self, _domid: int) -> int:
        return 0

    def map_ring(self, domid: int, _gfn: int, _port: int) -> None:
        self.add(domid)
        self._server.introduce(domid, 0)

    def unmap_ring(self, domid: int) -> None:
        self._domids.pop(domid, None)


def load(server: Xenstored, domains: KnownDomains, path: Path) -> int:
    """Write the nodes of a store file, or of a pipe; their number.

    The owners that it names exist from then on. Raises ConfigError with file and line, after
    which nothing may be served of it.
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"is too long; at most {FILE_BYTES_MAX} bytes are read", file=str(path))
    client = server.connect_local("store file")
    nodes = list(parse(text, str(path)))
    try:
        for node in nodes:
            _restore(client, domains, node)
    except StoreError as error:
        raise ConfigError(
            f"{node.path.decode()}: {error}", file=str(path), line=node.line
        ) from error
    finally:
        server.disconnect(client)
    return len(nodes)


def _restore(client: Connection, domains: KnownDomains, node: Listed) -> None:
    payload = node.path + b"\0" + node.value
    if len(payload) > PAYLOAD_MAX:
        raise StoreError("E2BIG", f"{len(payload)} bytes; a request has at most {PAYLOAD_MAX}")
    client.call(XS_WRITE, payload)
    if node.perms:
        for perm in node.perms:
            if int(perm[1:]) < DOMID_FIRST_RESERVED:
                domains.add(int(perm[1:]))
        client.call(XS_SET_PERMS, b"\0".join((node.path, *node.perms)) + b"\0")


def check_target(path: Path) -> None:
    """Raises ConfigError where `dump` could not write to `path`; nothing is left there."""
    if not path.parent.is_dir():
        raise ConfigError("its folder does not exist", file=str(path))
    # What is no file, a device or a pipe say, would be replaced by one.
    if path.exists() and not path.is_file():
        raise ConfigError("exists and is no file", file=str(path))
    _write_beside(path.resolve(), "").unlink()


def dump(server: Xenstored, path: Path) -> int:
    """Write all nodes to `path`, whole or not at all; their number. Raises ConfigError.

    The file is the owner's alone, as the socket is. Of a symbolic link the target is written.
    """
    text = server.ls_fp()
    target = path.resolve()
    beside = _write_beside(target, text)
    try:
        beside.replace(target)
    except OSError as error:
        beside.unlink()
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from error
    return text.count("\n")


def _write_beside(path: Path, text: str) -> Path:
    """A file of another name in the same folder. Raises ConfigError, and then there is none."""
    name = None
    try:
        with NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name[:100]}.", delete=False
        ) as file:
            name = Path(file.name)
            file.write(text)
    except OSError as error:
        if name is not None:
            name.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from error
    return name
