"""What tells one implementation of xenstored from another, as switches in one table.

`c` is the C xenstored of 2026, `ox` oxenstored 4.17, `legacy` what QEMU's emulation and old
clients take for granted: any change of the store ends an open transaction. Where the three do
the same there is no switch (xen-core 6).
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.xs import XS
from xenpv.errors import ConfigError


class Isolation(enum.Enum):
    """When a transaction sees the store, and what makes its commit fail with EAGAIN."""

    FIRST_ACCESS = "each node as it is when first touched; fails if one of them changed"
    MERGE = "the store at the start; fails if the changes do not merge and a replay differs"
    ANY_CHANGE = "the store at the start; fails if anything changed since"


class Throttle(enum.Enum):
    """What costs a guest credit, without which its ring is not read."""

    NONE = "nothing"
    WRITES = "each node that it writes while a transaction is open"
    CONFLICTS = "each transaction of another that fails by what it wrote"


@attrs.frozen(kw_only=True)
class Profile:
    """Switches of one implementation.

    `newest` is the highest request type that it knows. `boundary` says for a quota how far
    beyond its value the first refusal lies (0: at the value). `renamed` are errors that it
    calls by another name, `breaches` what it calls that of a quota if not ENOSPC (of path_max
    if not EINVAL). `features` are those that it offers in a ring page. `event_timeout_s`
    is how long a guest may leave an event unread, 0 for ever. `unknown` are types up to
    `newest` that it does not know.
    """

    name: str
    isolation: Isolation
    newest: int = int(XS.SET_QUOTA)
    unknown: tuple[int, ...] = ()
    # Rights, domains and numbers as in store.oxrequest; special names are children of the root.
    numbered: bool = False
    guests_see_special: bool = True  # @names are paths for those that have no privilege
    event_first: bool = True
    sorted_children: bool = False
    hides_absence: bool = True  # EACCES for a missing node below one that is not readable
    creator_owns: bool = True
    give_away: str = "EPERM"
    missing_rm: bool = True  # RM of a missing node whose parent is there succeeds
    root_rm: bool = False  # RM of / empties the tree
    rm_checks_rights: bool = True  # before it says that nothing is there
    ox_watches: bool = False  # order, rights and removals as in store.oxwatch
    unknown_transaction: str = "ENOENT"
    release_unknown: str = "ENOENT"
    introduce_again: str = ""  # the error of INTRODUCE of a domain that is introduced
    throttle: Throttle = Throttle.NONE
    coalesces: bool = True
    watch_rights: bool = True
    renamed: dict[str, str] = attrs.field(factory=dict)
    breaches: dict[str, str] = attrs.field(factory=dict)
    boundary: dict[str, int] = attrs.field(factory=dict)
    quotas: dict[str, int] = attrs.field(factory=dict)
    features: int = 0
    event_timeout_s: int = 0
    page_port: bool = False  # INTRODUCE prefers the port that the ring page names
    clamps_length: bool = False  # of a longer request 4,096 bytes are served, the rest is the next
    value_max: int = 0  # bytes; a longer one is E2BIG for everybody, 0 for no such rule
    path_max: int = 0  # bytes; a longer one is EINVAL for everybody, 0 for no such rule
    long_replies: bool = False  # those over 4,096 bytes go out whole on a socket
    requests_max: int = 0  # of a guest in one transaction, its end included; 0 for no limit
    events_max: int = 0  # unread of a connection, and then of each of its watches; 0 for no limit
    nodes_total: int = 0  # in the whole store, for guests; 0 for no limit
    start: tuple[bytes, ...] = (b"/tool", b"/tool/xenstored")  # what is there besides the root


C: Final = Profile(
    name="c",
    isolation=Isolation.FIRST_ACCESS,
    features=lib.XENSTORE_SERVER_FEATURE_ERROR
    | lib.XENSTORE_SERVER_FEATURE_WATCHDEPTH
    | lib.XENSTORE_SERVER_FEATURE_DOMID_ANY,
    event_timeout_s=20,
    page_port=True,
    throttle=Throttle.WRITES,
)
OX: Final = Profile(
    name="ox",
    isolation=Isolation.MERGE,
    newest=int(XS.RESET_WATCHES),
    numbered=True,
    event_first=False,
    sorted_children=True,
    hides_absence=False,
    creator_owns=False,
    give_away="EACCES",
    root_rm=True,
    rm_checks_rights=False,
    ox_watches=True,
    unknown_transaction="EIO",
    release_unknown="EINVAL",
    coalesces=False,
    renamed={"ENOSPC": "EQUOTA"},
    # It compares before it adds: 101 watches and 11 transactions fit.
    boundary={"nodes": 1, "watches": 2, "transactions": 2},
    # Of a node only the value is measured, paths by the rule for everybody, and of a
    # transaction the requests. Memory is bounded by replies and events that wait.
    quotas={
        "watches": 100,
        "outstanding": 1024,
        "memory": 0,
        "transaction_nodes": 0,
        "node_permissions": 0,
        "path_max": 0,
        "node_size": 0,
    },
    features=lib.XENSTORE_SERVER_FEATURE_RECONNECTION,
    throttle=Throttle.CONFLICTS,
    clamps_length=True,
    value_max=2048,
    path_max=2048,
    long_replies=True,
    requests_max=1024,
    events_max=1024,
    start=(b"/@introduceDomain", b"/@releaseDomain", b"/local", b"/tool", b"/tool/xenstored"),
)
LEGACY: Final = Profile(
    name="legacy",
    isolation=Isolation.ANY_CHANGE,
    newest=int(XS.DIRECTORY_PART),
    unknown=(int(XS.GET_DOMAIN_PATH),),
    guests_see_special=False,
    event_first=False,
    sorted_children=True,
    hides_absence=False,
    creator_owns=False,
    missing_rm=False,
    coalesces=False,
    watch_rights=False,
    breaches={"watches": "E2BIG", "node_size": "E2BIG", "path_max": "E2BIG"},
    root_rm=True,
    release_unknown="EACCES",
    introduce_again="EACCES",
    boundary={"node_permissions": 1},
    quotas={"nodes": 0, "path_max": 3072, "transaction_nodes": 0},
    nodes_total=1000,
    start=(),
)

PROFILES: Final[dict[str, Profile]] = {one.name: one for one in (C, OX, LEGACY)}


def named(name: str) -> Profile:
    """Raises ConfigError for a name that is none."""
    found = PROFILES.get(name)
    if found is None:
        raise ConfigError(f"no profile is called {name!r}: expected {', '.join(PROFILES)}")
    return found
