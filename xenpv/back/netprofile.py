"""Backends of a vif differ: Linux' netback, QEMU's xen_nic and mirage-net-xen, in one table.

A profile says which keys a backend writes, how it reads the frontend's, which states it walks
through, and what it can do with a ring. Nothing else in `back` asks for a name.

Sources: drivers/net/xen-netback, hw/net/xen_nic.c with hw/xen/xen-bus.c, and mirage-net-xen's
netif.ml and xenstore.ml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.txrules import LINUX_TX, LINUX_ZEROCOPY_TX, MIRAGE_TX, QEMU_TX, TxRules
from xenpv.back.xenbus import number_of
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import PAGE_SIZE

UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED, RECONFIGURING = (
    State.UNKNOWN,
    State.INITIALISING,
    State.INIT_WAIT,
    State.INITIALISED,
    State.CONNECTED,
    State.CLOSING,
    State.CLOSED,
    State.RECONFIGURING,
)
# What a state of the frontend asks of Linux' backend. Others ask nothing.
TARGET: Final = {
    INITIALISING: INIT_WAIT,
    CONNECTED: CONNECTED,
    CLOSING: CLOSING,
    CLOSED: CLOSED,
    UNKNOWN: CLOSED,
}
# (from, to): the states that Linux' backend passes through (set_backend_state).
PATHS: Final = {
    (INITIALISING, INIT_WAIT): (INIT_WAIT,),
    (INITIALISING, CONNECTED): (INIT_WAIT, CONNECTED),
    (INITIALISING, CLOSING): (INIT_WAIT, CLOSING),
    (INITIALISING, CLOSED): (CLOSED,),
    (INIT_WAIT, CONNECTED): (CONNECTED,),
    (INIT_WAIT, CLOSING): (CLOSING,),
    (INIT_WAIT, CLOSED): (CLOSING, CLOSED),
    (CONNECTED, INIT_WAIT): (CLOSING, CLOSED, INIT_WAIT),
    (CONNECTED, CLOSING): (CLOSING,),
    (CONNECTED, CLOSED): (CLOSING, CLOSED),
    (CLOSING, INIT_WAIT): (CLOSED, INIT_WAIT),
    (CLOSING, CONNECTED): (CLOSED, INIT_WAIT, CONNECTED),
    (CLOSING, CLOSED): (CLOSED,),
    (CLOSED, INIT_WAIT): (INIT_WAIT,),
    (CLOSED, CONNECTED): (INIT_WAIT, CONNECTED),
    (CLOSED, CLOSING): (CLOSING,),
}

# (own state, frontend's): the states to pass through. A pair that is absent asks nothing.
Walk = Mapping[tuple[State, State], tuple[State, ...]]

LINUX_WALK: Final[Walk] = {
    (own, seen): PATHS[own, target]
    for own in (INITIALISING, INIT_WAIT, CONNECTED, CLOSING, CLOSED)
    for seen, target in TARGET.items()
    if own is not target
}
# xen_netdev_frontend_changed; InitWait again is xen_device_frontend_changed's.
QEMU_WALK: Final[Walk] = {
    (CLOSED, INITIALISING): (INIT_WAIT,),
    (INIT_WAIT, CONNECTED): (CONNECTED,),
    (CLOSING, CONNECTED): (CONNECTED,),
    (CLOSED, CONNECTED): (CONNECTED,),
    (INIT_WAIT, CLOSING): (CLOSING,),
    (CONNECTED, CLOSING): (CLOSING,),
    (CLOSED, CLOSING): (CLOSING,),
    (INIT_WAIT, CLOSED): (CLOSED,),
    (CONNECTED, CLOSED): (CLOSED,),
    (CLOSING, CLOSED): (CLOSED,),
    (INIT_WAIT, UNKNOWN): (CLOSED,),
    (CONNECTED, UNKNOWN): (CLOSED,),
    (CLOSING, UNKNOWN): (CLOSED,),
}
# Until it was connected once, a close is answered and a new start too: XenVif closes before it
# connects, and what only waited for a Connected frontend wedged it (qubes-mirage-firewall#230).
MIRAGE_WALK: Final[Walk] = {
    (CLOSED, INITIALISING): (INIT_WAIT,),
    (INIT_WAIT, INITIALISED): (CONNECTED,),
    (INIT_WAIT, CONNECTED): (CONNECTED,),
    (CLOSED, INITIALISED): (INIT_WAIT, CONNECTED),
    (CLOSED, CONNECTED): (INIT_WAIT, CONNECTED),
    (INIT_WAIT, CLOSING): (CLOSED,),
    (CONNECTED, CLOSING): (CLOSED,),
    (INIT_WAIT, CLOSED): (CLOSED,),
    (CONNECTED, CLOSED): (CLOSED,),
    (INIT_WAIT, UNKNOWN): (CLOSED,),
    (CONNECTED, UNKNOWN): (CLOSED,),
}


def flag_number(text: str | None) -> bool:
    """A boolean as Linux reads it: a leading decimal number that is not 0."""
    return number_of(text, 0) != 0


def flag_one(text: str | None) -> bool:
    """A boolean as mirage reads it: "1" and nothing else."""
    return text == "1"


@attrs.frozen(kw_only=True)
class Profile:
    """What tells one backend from another.

    Keys and states:
    `features` are written in one transaction, with InitWait in the same one if `waits_first`
    is None; `announced` after it, one by one, then multi-queue-max-queues if there are queues
    to choose. `waits_first`: the backend goes to InitWait when its frontend is Initialising;
    None or False: as soon as it is there. `front_mac`: it writes `mac` for the frontend too.
    `hotplug`: Connected is written once the script is done. `script`: it must be named.
    `fatal_states`: states of a frontend that no frontend has. `deletes`: the directory goes
    when a frontend that was connected closes of itself; what the toolstack takes away it removes.

    The frontend's keys:
    `flag` reads a boolean. `rx_copy`: without request-rx-copy it refuses to connect.
    `queues_max` 1 without `announced` queues: it reads flat keys and `event-channel` only.

    Rings:
    `tx`: how it reads what a guest transmits, and whether `rate` limits that.
    `rx_offset`: where bytes begin in a page; `rx_bytes`: how many fit behind it. `rx_chains`:
    a frame may take several slots. `rx_sums`: csum_blank and data_validated are used.
    `rx_expires`: what waits for slots is dropped in time, and a stalled guest loses the carrier.
    """

    name: str
    features: Mapping[str, str]
    announced: Mapping[str, str] = attrs.field(factory=dict)
    waits_first: bool | None = False
    front_mac: bool = False
    hotplug: bool = False
    script: bool = False
    fatal_states: tuple[State, ...] = ()
    deletes: bool = False
    walk: Walk
    flag: Callable[[str | None], bool] = flag_number
    rx_copy: bool = False
    queues_max: int = 1
    gso: bool = False
    ipv6_csum: bool = False
    control: bool = False
    multicast: bool = False
    headroom: bool = False
    tx: TxRules
    rx_offset: int = 0
    rx_bytes: int = PAGE_SIZE
    rx_chains: bool = True
    rx_sums: bool = False
    rx_expires: bool = False

    @property
    def multi_queue(self) -> bool:
        """It reads multi-queue-num-queues, queue-N and split event channels."""
        return self.queues_max > 1


LINUX: Final = Profile(
    name="linux",
    features={
        "feature-sg": "1",
        "feature-gso-tcpv4": "1",
        "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1",
        "feature-rx-copy": "1",
        "feature-rx-flip": "0",
        "feature-multicast-control": "1",
        "feature-dynamic-multicast-control": "1",
        "feature-xdp-headroom": "1",
    },
    announced={"feature-split-event-channels": "1"},
    waits_first=True,
    hotplug=True,
    script=True,
    fatal_states=(State.INIT_WAIT, State.RECONFIGURED),
    walk=LINUX_WALK,
    queues_max=8,
    gso=True,
    ipv6_csum=True,
    control=True,
    multicast=True,
    headroom=True,
    tx=LINUX_TX,
    rx_sums=True,
    rx_expires=True,
)
QEMU: Final = Profile(
    name="qemu",
    features={"feature-rx-copy": "1", "feature-rx-flip": "0"},
    front_mac=True,
    walk=QEMU_WALK,
    rx_copy=True,
    tx=QEMU_TX,
    rx_offset=2,  # NET_IP_ALIGN
    rx_bytes=PAGE_SIZE - 2,
    rx_chains=False,
)
MIRAGE: Final = Profile(
    name="mirage",
    features={
        "feature-sg": "1",
        "feature-gso-tcpv4": "0",
        "feature-rx-copy": "1",
        "feature-rx-flip": "0",
        "feature-rx-notify": "1",
        "feature-smart-poll": "0",
    },
    waits_first=None,
    deletes=True,
    walk=MIRAGE_WALK,
    flag=flag_one,
    tx=MIRAGE_TX,
)
# What Linux really does with the pages of what it is sent; `linux` copies, which is cheaper.
LINUX_ZEROCOPY: Final = attrs.evolve(LINUX, name="linux-zerocopy", tx=LINUX_ZEROCOPY_TX)
PROFILES: Final = {profile.name: profile for profile in (LINUX, LINUX_ZEROCOPY, QEMU, MIRAGE)}


def profile(name: str) -> Profile:
    """The profile of that name. LocalProtocolError: there is none."""
    found = PROFILES.get(name)
    if found is None:
        raise LocalProtocolError(f"netback {name!r}: expected one of {', '.join(PROFILES)}")
    return found
