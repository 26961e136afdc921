"""NDIS' numbers that an adapter speaks: statuses of requests, sends and indications (ndis.h)."""

from __future__ import annotations

import enum


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
