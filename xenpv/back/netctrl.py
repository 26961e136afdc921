"""netback's end of the control ring: a guest configures the hash (Linux interface.c, hash.c).

Each request is copied once, answered in order and pushed alone. Linux does not look whether
req_prod runs past the ring; here such a guest loses its vif. Staging grants (types 8 to 10)
are not offered, as in Linux.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer
from xenpv.abi.netif import XEN_NETIF_CTRL_STATUS as STATUS
from xenpv.abi.netif import XEN_NETIF_CTRL_TYPE as TYPE
from xenpv.back.nethash import ALGORITHMS, KEY_MAX, MAPPING_MAX, NONE, TYPES
from xenpv.back.ring import BackRing
from xenpv.errors import GrantError, HypercallError, PeerProtocolError
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.back.netback import Netback

REQUEST: Final = packer("xen_netif_ctrl_request")
RESPONSE: Final = packer("xen_netif_ctrl_response")
ENTRY_BYTES: Final = 4  # of a mapping: a queue's number, u32
ENTRIES_PER_PAGE: Final = PAGE_SIZE // ENTRY_BYTES

SUCCESS: Final = (int(STATUS.SUCCESS), 0)
NOT_SUPPORTED: Final = (int(STATUS.NOT_SUPPORTED), 0)
INVALID_PARAMETER: Final = (int(STATUS.INVALID_PARAMETER), 0)

Answer = tuple[int, int]  # status, data


def set_hash_algorithm(vif: Netback, algorithm: int, _1: int, _2: int) -> Answer:
    if algorithm not in ALGORITHMS:
        return INVALID_PARAMETER
    vif.hash.algorithm = algorithm
    return SUCCESS


def get_hash_flags(vif: Netback, _0: int, _1: int, _2: int) -> Answer:
    if vif.hash.algorithm == NONE:
        return NOT_SUPPORTED
    return int(STATUS.SUCCESS), TYPES


def set_hash_flags(vif: Netback, flags: int, _1: int, _2: int) -> Answer:
    if flags & ~TYPES or vif.hash.algorithm == NONE:
        return INVALID_PARAMETER
    vif.hash.types = flags
    return SUCCESS


def set_hash_key(vif: Netback, gref: int, size: int, _2: int) -> Answer:
    """netif.h asks for BUFFER_OVERFLOW where a key is too long; Linux answers otherwise."""
    if size > KEY_MAX:
        return INVALID_PARAMETER
    key = fetch(vif, gref, size)
    if key is None:
        return INVALID_PARAMETER
    vif.hash.key = key.ljust(KEY_MAX, b"\0")
    return SUCCESS


def get_hash_mapping_size(_vif: Netback, _0: int, _1: int, _2: int) -> Answer:
    return int(STATUS.SUCCESS), MAPPING_MAX


def set_hash_mapping_size(vif: Netback, size: int, _1: int, _2: int) -> Answer:
    if size > MAPPING_MAX:
        return INVALID_PARAMETER
    vif.hash.mapping = (0,) * size
    return SUCCESS


def is_beyond(offset: int, size: int, entries: int) -> bool:
    """Whether a part of a table is none; a sum of a guest's numbers may have 33 bits."""
    return offset + size > entries


def is_queue(entry: int, queues: int) -> bool:
    """Whether an entry of a mapping names one of so many queues."""
    return entry < queues


def set_hash_mapping(vif: Netback, gref: int, size: int, offset: int) -> Answer:
    """The new table takes the old one's place whole, or not at all (XSA-270)."""
    table = vif.hash.mapping
    if is_beyond(offset, size, len(table)) or size > ENTRIES_PER_PAGE:
        return INVALID_PARAMETER
    raw = fetch(vif, gref, size * ENTRY_BYTES)
    if raw is None:
        return INVALID_PARAMETER
    entries = array("I", raw)
    if not all(is_queue(entry, len(vif.queues)) for entry in entries):
        return INVALID_PARAMETER
    vif.hash.mapping = (*table[:offset], *entries, *table[offset + size :])
    return SUCCESS


HANDLERS: Final[Mapping[int, Callable[[Netback, int, int, int], Answer]]] = {
    TYPE.GET_HASH_FLAGS: get_hash_flags,
    TYPE.SET_HASH_FLAGS: set_hash_flags,
    TYPE.SET_HASH_KEY: set_hash_key,
    TYPE.GET_HASH_MAPPING_SIZE: get_hash_mapping_size,
    TYPE.SET_HASH_MAPPING_SIZE: set_hash_mapping_size,
    TYPE.SET_HASH_MAPPING: set_hash_mapping,
    TYPE.SET_HASH_ALGORITHM: set_hash_algorithm,
}


def fetch(vif: Netback, gref: int, size: int) -> bytes | None:
    """The first `size` bytes of a page that the guest granted; None if it did not.

    Of no bytes nothing is copied, and the reference may be any number.
    """
    if not size:
        return b""
    local = bytearray(size)
    status = ffi.new("int8_t[1]")
    failed = lib.grant_copy_local(
        vif.domain.kernel, vif.granter().kernel, 0, [gref, size << 16, 0], 1,
        ffi.from_buffer(local), size, status,
    )  # fmt: skip
    if failed < 0:
        vif.domain.check(failed)
    return None if failed else bytes(local)


class ControlRing:
    """The control ring of one vif, from connect to disconnect."""

    def __init__(self, vif: Netback) -> None:
        self._vif = vif
        self.name = f"{vif.name}-control"
        self._task = vif.domain.task(self.name, self.poll)
        self._ring: BackRing | None = None
        self._port = 0
        self._map: tuple[int, int] | None = None  # pfn, handle

    def connect(self, ref: int, port: int) -> None:
        """Map the ring, bind the port. PeerProtocolError, HypercallError: call `release`."""
        vif = self._vif
        domain = vif.domain
        pfn = domain.holes.alloc()
        try:
            handle = domain.gnttab.map(vif.frontend_domid, ref, pfn)
        except GrantError as error:
            domain.holes.free(pfn)
            raise PeerProtocolError(f"mapping ctrl-ring-ref {ref}: {error}") from error
        self._map = pfn, handle
        self._ring = BackRing(
            domain, [pfn], req_size=REQUEST.size, rsp_size=RESPONSE.size, kind="xen_netif_ctrl"
        )
        self._port = domain.evtchn.bind_interdomain(vif.frontend_domid, port)
        vif.device.dispatcher.bind_task(self._port, self._task)
        self._task.wake()

    def poll(self) -> None:
        """Serve what is on the ring; again later if the guest goes on."""
        if self._ring is None or self._vif.disabled:
            return
        try:
            if self._serve(self._ring):
                self._task.wake()
        except (PeerProtocolError, HypercallError) as error:
            self._vif.fatal(f"{self.name}: {error}")

    def _serve(self, ring: BackRing) -> bool:
        """Answer one batch; whether there is more."""
        vif = self._vif
        _, raw = ring.take()
        for number, kind, *data in REQUEST.iter_unpack(bytes(raw)):
            handler = HANDLERS.get(kind)
            status, value = NOT_SUPPORTED if handler is None else handler(vif, *data)
            if ring.push(RESPONSE.pack(number, kind, status, value), 1):
                vif.domain.evtchn.send(self._port)
        return ring.final_check()

    def release(self) -> None:
        """Unbind, unmap; a second call does nothing."""
        domain = self._vif.domain
        self._ring = None
        if self._port:
            self._vif.device.dispatcher.unbind_port(self._port)
            domain.evtchn.close(self._port)
            self._port = 0
        if self._map is not None:
            pfn, handle = self._map
            self._map = None
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)
        domain.forget(self._task)
