"""What a frontend does at each state of its backend: a state without a row is waited out.

XenVif prepares and closes once before it first connects; a Linux frontend connects at once
and follows its backend when that closes.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import ABSENT, Do, Goal, Table

WINDOWS: Final[Table] = {
    Goal.PREPARE: {
        ABSENT: Do.OFFLINE,
        State.UNKNOWN: Do.OFFLINE,
        State.INIT_WAIT: Do.DONE,
        State.CONNECTED: State.CLOSING,
        State.CLOSING: State.CLOSED,
        State.CLOSED: Do.REOPEN,
    },
    Goal.CONNECT: {
        ABSENT: Do.OFFLINE,
        State.UNKNOWN: Do.OFFLINE,
        State.INIT_WAIT: State.CONNECTED,
        State.INITIALISED: State.CONNECTED,
        State.CONNECTED: Do.DONE,
        State.CLOSING: State.CLOSED,
    },
    Goal.CLOSE: {
        ABSENT: Do.OFFLINE,
        State.UNKNOWN: Do.OFFLINE,
        State.INIT_WAIT: State.CLOSING,
        State.CONNECTED: State.CLOSING,
        State.CLOSING: State.CLOSED,
        State.CLOSED: Do.DONE,
    },
}
LINUX: Final[Table] = {
    Goal.PREPARE: {State.INIT_WAIT: Do.DONE},
    Goal.CONNECT: {
        ABSENT: Do.FAIL,
        State.UNKNOWN: Do.FAIL,
        State.INIT_WAIT: State.CONNECTED,
        State.CONNECTED: Do.DONE,
        State.CLOSING: State.CLOSED,
        State.CLOSED: Do.FAIL,
    },
    Goal.CLOSE: {
        ABSENT: Do.FAIL,
        State.UNKNOWN: Do.FAIL,
        State.INITIALISING: State.CLOSING,
        State.INIT_WAIT: State.CLOSING,
        State.INITIALISED: State.CLOSING,
        State.CONNECTED: State.CLOSING,
        State.CLOSING: State.CLOSED,
        State.CLOSED: Do.DONE,
    },
}
TABLES: Final = {"windows": WINDOWS, "linux": LINUX}
START: Final = {
    "windows": (Goal.PREPARE, Goal.CLOSE, Goal.PREPARE, Goal.CONNECT),
    "linux": (Goal.PREPARE, Goal.CONNECT),
}
# What of the backend's directory is watched while the device lives.
WATCHED: Final = {"windows": "online", "linux": "state"}
GONE: Final = (State.CLOSED, State.UNKNOWN, ABSENT)
