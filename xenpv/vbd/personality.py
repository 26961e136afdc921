"""How a guest's block driver connects: XenVbd of Windows, or Linux' xen-blkfront.

The tables say what the frontend does at each state of its backend on the way to a goal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import ABSENT, Do, Goal, Seen, Step, Table

CLOSE: Final[Mapping[Seen, Step]] = {
    ABSENT: Do.FAIL,
    State.UNKNOWN: State.CLOSING,
    State.INITIALISING: Do.WAIT,
    State.INIT_WAIT: State.CLOSING,
    State.INITIALISED: State.CLOSING,
    State.CONNECTED: State.CLOSING,
    State.CLOSING: State.CLOSED,
    State.CLOSED: Do.DONE,
    State.RECONFIGURING: State.CLOSING,
    State.RECONFIGURED: State.CLOSING,
}
# Once it wrote Closing it writes it at all but Closing and Closed; once it wrote Closed, that
# at all but Closed.
CLOSING: Final[Mapping[Seen, Step]] = {State.INITIALISING: State.CLOSING}
CLOSED: Final[Mapping[Seen, Step]] = {
    state: State.CLOSED for state in State if state is not State.CLOSED
}
CONNECT: Final[Mapping[Seen, Step]] = {
    ABSENT: Do.FAIL,
    State.UNKNOWN: Do.FAIL,
    State.INITIALISING: Do.WAIT,
    State.INIT_WAIT: Do.WAIT,
    State.INITIALISED: Do.WAIT,
    State.CONNECTED: Do.DONE,
    State.CLOSING: Do.FAIL,
    State.CLOSED: Do.FAIL,
    State.RECONFIGURING: Do.FAIL,
    State.RECONFIGURED: Do.FAIL,
}
AFTER: Final[Table] = {
    (Goal.CLOSE, State.CLOSING): CLOSING,
    (Goal.CLOSE, State.CLOSED): CLOSED,
}

# win-xenvbd frontend.c: FrontendClose, FrontendPrepare, FrontendConnect.
WINDOWS_TABLE: Final[Table] = {
    Goal.CLOSE: CLOSE,
    **AFTER,
    Goal.PREPARE: {
        ABSENT: Do.FAIL,
        State.UNKNOWN: Do.FAIL,
        State.INITIALISING: Do.WAIT,
        State.INIT_WAIT: Do.DONE,
        State.INITIALISED: Do.FAIL,
        State.CONNECTED: Do.FAIL,
        State.CLOSING: Do.FAIL,
        State.CLOSED: Do.WAIT,
        State.RECONFIGURING: Do.FAIL,
        State.RECONFIGURED: Do.FAIL,
    },
    Goal.CONNECT: CONNECT,
}

# xen-blkfront.c, blkback_changed; a backend left over by a kernel before this one is closed
# and reopened as xenbus_reset_state does.
LINUX_TABLE: Final[Table] = {
    Goal.CLOSE: {**CLOSE, State.UNKNOWN: Do.FAIL},
    **AFTER,
    Goal.PREPARE: {
        ABSENT: Do.WAIT,
        State.UNKNOWN: Do.WAIT,
        State.INITIALISING: Do.WAIT,
        State.INIT_WAIT: Do.DONE,
        State.INITIALISED: Do.WAIT,
        State.CONNECTED: State.CLOSING,
        State.CLOSING: State.CLOSED,
        State.CLOSED: State.INITIALISING,
        State.RECONFIGURING: Do.WAIT,
        State.RECONFIGURED: Do.WAIT,
    },
    Goal.CONNECT: CONNECT,
}


@attrs.frozen(kw_only=True)
class Personality:
    """One driver's habits. `ring_page_order_max`, `queues_max` (0: as many as vcpus) and
    `indirect_max` (segments) bound what the backend offers.
    """

    name: str
    table: Table
    start: tuple[Goal, ...]
    ring_page_order_max: int
    queues_max: int
    indirect_max: int
    closes_with_backend: bool  # whether it closes when the backend alone goes to Closing
    # Whether requests have a place in a shadow ring: ids are its indices, and an answer must name
    # the operation.
    has_shadow: bool
    has_watchdog: bool  # whether rings are looked at for events that were lost
    requeues: bool  # whether a resume does again what was on the ring; else that is an ERROR


WINDOWS: Final = Personality(
    name="windows",
    table=WINDOWS_TABLE,
    start=(Goal.CLOSE, Goal.PREPARE, Goal.CONNECT),
    ring_page_order_max=1,  # xenvbd.inf
    queues_max=2,  # xenvbd.inf
    indirect_max=4096,
    closes_with_backend=False,
    has_shadow=False,
    has_watchdog=True,
    requeues=False,
)
LINUX: Final = Personality(
    name="linux",
    table=LINUX_TABLE,
    start=(Goal.PREPARE, Goal.CONNECT),
    ring_page_order_max=0,  # xen_blkif_max_ring_order
    queues_max=4,  # xen_blkif_max_queues
    indirect_max=32,  # xen_blkif_max_segments
    closes_with_backend=True,
    has_shadow=True,
    has_watchdog=False,
    requeues=True,
)
PERSONALITIES: Final[Mapping[str, Personality]] = {one.name: one for one in (WINDOWS, LINUX)}
