"""States of a split device (io/xenbus.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class XenbusState(IntEnum):
    """What the key `state` of either end says: INIT_WAIT is Xen's XenbusStateInitWait."""

    UNKNOWN = lib.XenbusStateUnknown
    INITIALISING = lib.XenbusStateInitialising
    INIT_WAIT = lib.XenbusStateInitWait
    INITIALISED = lib.XenbusStateInitialised
    CONNECTED = lib.XenbusStateConnected
    CLOSING = lib.XenbusStateClosing
    CLOSED = lib.XenbusStateClosed
    RECONFIGURING = lib.XenbusStateReconfiguring
    RECONFIGURED = lib.XenbusStateReconfigured
