"""Receive side scaling and receive hashing: the two requests that ask for a Toeplitz hash.

XenNet's calls of the VIF interface wait for the backend. Here a request that needs it is PENDING
until then, as NDIS allows: `status` says how it ended. Who stands outside the loop waits for it.
"""

from __future__ import annotations

import enum
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net.ndis import OBJECT_TYPE_DEFAULT, NdisStatus
from xenpv.net.oid import OidError
from xenpv.vif.interface import NTSTATUS, HashAlgorithm, HashRequest, HashType, NtStatusError

if TYPE_CHECKING:
    from xenpv.net.properties import Properties
    from xenpv.vif.interface import VifInterface

# NDIS_RECEIVE_HASH_PARAMETERS: header, flags, information, size and offset of the key behind it.
RECEIVE_HASH: Final = Struct("<BBHIIHxxI")
ENABLE_HASH: Final = 1
HASH_INFO_UNCHANGED: Final = 2
HASH_KEY_UNCHANGED: Final = 4
# NDIS_RECEIVE_SCALE_PARAMETERS up to the key's offset: header, flags, base CPU, information, size
# and offset of the table, of the key.
RECEIVE_SCALE: Final = Struct("<BBHHHIHxxIHxxI")
SCALE_INFO_UNCHANGED: Final = 2
SCALE_TABLE_UNCHANGED: Final = 4
SCALE_KEY_UNCHANGED: Final = 8
SCALE_DISABLE: Final = 0x10

FUNCTION_MASK: Final = 0xFF
TOEPLITZ: Final = 1  # NdisHashFunctionToeplitz, the lowest byte of the information
TYPES: Final = {  # NDIS_HASH_*
    0x100: HashType.IPV4,
    0x200: HashType.IPV4_TCP,
    0x400: HashType.IPV6,
    0x1000: HashType.IPV6_TCP,
}
KEY_MAX: Final = 40
TABLE_MAX: Final = 512  # bytes: 128 entries
ENTRY: Final = Struct("<HBx")  # PROCESSOR_NUMBER: group, number
CPUS_PER_GROUP: Final = 64


class Stage(enum.Enum):
    """What the interface is asked for, one thing after the other."""

    PROBE = "probe"
    ALGORITHM = "algorithm"
    TYPES = "types"
    KEY = "key"
    TABLE = "table"


# What a request ends with if the interface refuses there.
REFUSED: Final = {
    Stage.PROBE: NdisStatus.SUCCESS,
    Stage.ALGORITHM: NdisStatus.FAILURE,
    Stage.TYPES: NdisStatus.INVALID_DATA,
    Stage.KEY: NdisStatus.INVALID_DATA,
    Stage.TABLE: NdisStatus.INVALID_DATA,
}


@attrs.frozen(kw_only=True)
class RssCapability:
    """NDIS_RECEIVE_SCALE_CAPABILITIES; `types` are bits of NDIS_HASH_*."""

    queues: int
    types: int
    entries: int = TABLE_MAX // ENTRY.size
    key_bytes: int = KEY_MAX


@attrs.define(eq=False)
class Rss:
    """Of one adapter. `is_supported`: the interface hashes, and the property *RSS is set.

    `status` is that of the last request. What it asks for goes by `_work`: the parts of its value
    that are still to be looked at.
    """

    is_supported: bool = False
    hash_enabled: bool = False  # by RECEIVE_HASH
    scale_enabled: bool = False  # by RECEIVE_SCALE_PARAMETERS
    types: int = 0  # NDIS_HASH_*: bits of the information above the function
    key: bytes = b""
    status: NdisStatus = NdisStatus.SUCCESS
    capability: RssCapability | None = None
    _vif: VifInterface | None = None
    _work: deque[tuple[Stage, int | bytes | None]] = attrs.field(factory=deque)
    _stage: Stage | None = None  # what the interface is asked for now
    _queues_max: int = 1

    def initialize(self, vif: VifInterface, properties: Properties) -> None:
        """InitializeEx: find out whether the interface takes TOEPLITZ.

        The driver leaves it on, for NDIS sends its parameters next; here nobody need, and a
        backend takes a hash without types for queue 0, so it goes off again.
        """
        self._vif = vif
        if properties.rss:
            self._queues_max = properties.num_rss_queues
            self._start([(Stage.PROBE, None)])

    def query_receive_hash(self) -> bytes:
        """RECEIVE_HASH, with the key behind it."""
        size = RECEIVE_HASH.size
        flags = ENABLE_HASH if self.hash_enabled else 0
        header = (OBJECT_TYPE_DEFAULT, 1, size)
        information = self.types | TOEPLITZ
        return RECEIVE_HASH.pack(*header, flags, information, len(self.key), size) + self.key

    def set_receive_hash(self, vif: VifInterface, value: bytes) -> None:
        """RECEIVE_HASH; `value` has at least the bytes of RECEIVE_HASH."""
        if not self.is_supported or self.scale_enabled:
            raise OidError(NdisStatus.NOT_SUPPORTED, "receive hash")
        _, _, _, flags, information, size, offset = RECEIVE_HASH.unpack_from(value)
        work: list[tuple[Stage, int | bytes | None]] = []
        if not flags & HASH_INFO_UNCHANGED:
            work.append((Stage.ALGORITHM, information))
        if not flags & HASH_KEY_UNCHANGED:
            work.append((Stage.KEY, _part(value, offset, size)))
        self._ask(vif, work, off=not flags & ENABLE_HASH, hashing=True)

    def set_receive_scale_parameters(
        self, vif: VifInterface, properties: Properties, value: bytes
    ) -> None:
        """RECEIVE_SCALE_PARAMETERS; `value` has at least the bytes of its structure."""
        if not self.is_supported or not properties.rss or self.hash_enabled:
            raise OidError(NdisStatus.NOT_SUPPORTED, "receive side scaling")
        (_, _, _, flags, _, information, table_size, table_at, key_size, key_at) = (
            RECEIVE_SCALE.unpack_from(value)
        )
        work: list[tuple[Stage, int | bytes | None]] = []
        if not flags & SCALE_INFO_UNCHANGED:
            work.append((Stage.ALGORITHM, information))
        if not flags & SCALE_KEY_UNCHANGED:
            work.append((Stage.KEY, _part(value, key_at, key_size)))
        if not flags & SCALE_TABLE_UNCHANGED:
            work.append((Stage.TABLE, _part(value, table_at, table_size)))
        self._ask(vif, work, off=bool(flags & SCALE_DISABLE), hashing=False)

    def _ask(
        self,
        vif: VifInterface,
        work: list[tuple[Stage, int | bytes | None]],
        *,
        off: bool,
        hashing: bool,
    ) -> None:
        """Begin, and outside the loop end, a request."""
        if self._stage is not None:
            raise OidError(NdisStatus.FAILURE, "another request is under way")
        self._vif = vif
        if off:
            self._disable()
            self.status = NdisStatus.SUCCESS
            return
        self.hash_enabled = hashing
        self.scale_enabled = not hashing
        self._start(work)
        if self.status is NdisStatus.PENDING:
            vif.settle()
        if self.status not in (NdisStatus.SUCCESS, NdisStatus.PENDING):
            raise OidError(self.status, "the hash of what is received")

    # one thing after the other

    def _start(self, work: list[tuple[Stage, int | bytes | None]]) -> None:
        self._work = deque(work)
        self.status = NdisStatus.PENDING
        self._go_on()

    def _go_on(self) -> None:
        """The next part, until one has to wait for the backend."""
        while self.status is NdisStatus.PENDING:
            if not self._work:
                self._end(NdisStatus.SUCCESS)
                return
            stage, what = self._work.popleft()
            try:
                request = self._begin(stage, what)
            except OidError as error:
                self._end(error.status)
                return
            except NtStatusError:
                self._end(REFUSED[stage])
                return
            if request is None:
                self._end(NdisStatus.SUCCESS)  # hashing is off
                return
            if request.status is NTSTATUS.PENDING:
                self._stage = stage
                return
            self._succeeded(stage)

    def _begin(self, stage: Stage, what: int | bytes | None) -> HashRequest | None:
        """Ask for one thing. OidError: the value is wrong. None: it switches hashing off."""
        assert self._vif is not None
        vif = self._vif
        if stage is Stage.PROBE:
            return vif.receiver_set_hash_algorithm(HashAlgorithm.TOEPLITZ, self)
        if isinstance(what, int):
            if stage is Stage.ALGORITHM:
                if not _information(what):
                    self._disable()
                    return None
                self._work.appendleft((Stage.TYPES, what))
                return vif.receiver_set_hash_algorithm(HashAlgorithm.TOEPLITZ, self)
            self.types = what & ~FUNCTION_MASK
            return self._parameters()
        longest = KEY_MAX if stage is Stage.KEY else TABLE_MAX
        if what is None or len(what) > longest:
            raise OidError(
                NdisStatus.INVALID_DATA, f"{stage.value} of no more than {longest} bytes"
            )
        if not what:
            self._disable()
            return None
        if stage is Stage.KEY:
            self.key = what
            return self._parameters()
        whole = len(what) - len(what) % ENTRY.size
        cpus = [group * CPUS_PER_GROUP + cpu for group, cpu in ENTRY.iter_unpack(what[:whole])]
        return vif.update_hash_mapping(cpus, self)

    def _parameters(self) -> HashRequest:
        assert self._vif is not None
        types = sum(1 << kind for bit, kind in TYPES.items() if self.types & bit)
        key = self.key.ljust(KEY_MAX, b"\0")
        return self._vif.receiver_update_hash_parameters(types, key, self)

    def hash_changed(self, request: HashRequest) -> None:
        """The backend answered."""
        stage, self._stage = self._stage, None
        if stage is None:
            return
        if request.status is NTSTATUS.SUCCESS:
            self._succeeded(stage)
            self._go_on()
        else:
            self._end(REFUSED[stage])

    def _succeeded(self, stage: Stage) -> None:
        if stage is not Stage.PROBE:
            return
        assert self._vif is not None
        try:
            mask = self._vif.receiver_query_hash_capabilities()
        except NtStatusError:
            mask = 0
        types = sum(bit for bit, kind in TYPES.items() if mask >> kind & 1)
        queues = min(self._vif.query_ring_count(), self._queues_max)
        if types:
            self.is_supported = True
            self.capability = RssCapability(queues=queues, types=types)
        self._disable()

    def _end(self, status: NdisStatus) -> None:
        self._work.clear()
        self.status = status
        if status is not NdisStatus.SUCCESS:
            self._disable()

    def _disable(self) -> None:
        """AdapterDisableRSSHash: what comes of it at the backend is not looked at."""
        self.hash_enabled = self.scale_enabled = False
        self.types = 0
        self.key = b""
        assert self._vif is not None
        try:
            self._vif.receiver_set_hash_algorithm(HashAlgorithm.NONE)
        except NtStatusError as error:
            self._vif.stack.warn(f"RSS: {error}")


def _information(information: int) -> bool:
    """Whether it asks for a hash at all. OidError(FAILURE): for one that there is not."""
    function = information & FUNCTION_MASK
    if not function:
        return False
    types = information & ~FUNCTION_MASK
    if function != TOEPLITZ or not types or types & ~sum(TYPES):
        raise OidError(NdisStatus.FAILURE, f"hash information {information:#x}")
    return True


def _part(value: bytes, offset: int, size: int) -> bytes | None:
    """Bytes of a request; None where it does not have them."""
    return None if offset + size > len(value) else value[offset : offset + size]
