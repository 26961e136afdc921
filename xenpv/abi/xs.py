"""The xenstore wire protocol's message types (io/xs_wire.h, enum xsd_sockmsg_type)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class XS(IntEnum):
    """`xsd_sockmsg.type`: XS.READ is XS_READ. 23 to 26 are newer than Xen 4.17."""

    CONTROL = lib.XS_CONTROL
    DIRECTORY = lib.XS_DIRECTORY
    READ = lib.XS_READ
    GET_PERMS = lib.XS_GET_PERMS
    WATCH = lib.XS_WATCH
    UNWATCH = lib.XS_UNWATCH
    TRANSACTION_START = lib.XS_TRANSACTION_START
    TRANSACTION_END = lib.XS_TRANSACTION_END
    INTRODUCE = lib.XS_INTRODUCE
    RELEASE = lib.XS_RELEASE
    GET_DOMAIN_PATH = lib.XS_GET_DOMAIN_PATH
    WRITE = lib.XS_WRITE
    MKDIR = lib.XS_MKDIR
    RM = lib.XS_RM
    SET_PERMS = lib.XS_SET_PERMS
    WATCH_EVENT = lib.XS_WATCH_EVENT
    ERROR = lib.XS_ERROR
    IS_DOMAIN_INTRODUCED = lib.XS_IS_DOMAIN_INTRODUCED
    RESUME = lib.XS_RESUME
    SET_TARGET = lib.XS_SET_TARGET
    RESET_WATCHES = lib.XS_RESET_WATCHES
    DIRECTORY_PART = lib.XS_DIRECTORY_PART
    GET_FEATURE = lib.XS_GET_FEATURE
    SET_FEATURE = lib.XS_SET_FEATURE
    GET_QUOTA = lib.XS_GET_QUOTA
    SET_QUOTA = lib.XS_SET_QUOTA
    INVALID = lib.XS_INVALID
