"""NDIS' numbers that an adapter speaks: statuses, versions, the header of its objects (ndis.h)."""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

U32: Final = Struct("<I")
U64: Final = Struct("<Q")
U32_MAX: Final = 0xFFFFFFFF

HEADER: Final = Struct("<BBH")  # NDIS_OBJECT_HEADER: type, revision, size
OBJECT_TYPE_DEFAULT: Final = 0x80


class NdisStatus(enum.IntEnum):
    """NDIS_STATUS_*: what a request, a NET_BUFFER_LIST or an indication says."""

    SUCCESS = 0
    PENDING = 0x103
    NOT_ACCEPTED = 0x00010003
    LINK_STATE = 0x40010017
    TASK_OFFLOAD_CURRENT_CONFIG = 0x40020006
    FAILURE = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    RESOURCES = 0xC000009A
    NOT_SUPPORTED = 0xC00000BB
    INVALID_LENGTH = 0xC0010014
    INVALID_DATA = 0xC0010015
    BUFFER_TOO_SHORT = 0xC0010016


class NdisVersion(enum.IntEnum):
    """The NDIS that a miniport registers with: major << 8 | minor."""

    V6_30 = 0x061E
    V6_60 = 0x063C
    V6_85 = 0x0655

    @classmethod
    def of_system(cls, version: str) -> NdisVersion:
        """What a Windows "10.0.20348" has: 6.60 since build 14393, 6.85 since 20348.

        Of what is no Windows' version, the newest.
        """
        parts = version.split(".")
        if len(parts) < 3 or not parts[2].isdecimal() or parts[0] not in ("6", "10"):
            return cls.V6_85
        build = int(parts[2])
        if build >= 20348:
            return cls.V6_85
        return cls.V6_60 if build >= 14393 else cls.V6_30
