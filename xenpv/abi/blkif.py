"""Operations and status of block rings (io/blkif.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class BLKIF_OP(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`blkif_request.operation`."""

    READ = lib.BLKIF_OP_READ
    WRITE = lib.BLKIF_OP_WRITE
    WRITE_BARRIER = lib.BLKIF_OP_WRITE_BARRIER
    FLUSH_DISKCACHE = lib.BLKIF_OP_FLUSH_DISKCACHE
    RESERVED_1 = lib.BLKIF_OP_RESERVED_1
    DISCARD = lib.BLKIF_OP_DISCARD
    INDIRECT = lib.BLKIF_OP_INDIRECT


class BLKIF_RSP(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`blkif_response.status`."""

    EOPNOTSUPP = lib.BLKIF_RSP_EOPNOTSUPP
    ERROR = lib.BLKIF_RSP_ERROR
    OKAY = lib.BLKIF_RSP_OKAY
