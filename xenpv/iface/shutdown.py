"""control/shutdown: which requests a guest understands, and how it acknowledges them.

An acknowledgement is an empty value, written before acting and only for a value that is
understood; anything else is left where it is. "hibernate" is no value of any toolstack, but
another name of s4 that is accepted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.bus.store import StoreInterface, Transaction

KEY: Final = "control/shutdown"


class Act(enum.Enum):
    """What an operating system does about a request."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    SLEEP = "s3"
    HIBERNATE = "s4"


@attrs.frozen(kw_only=True)
class Requests:
    """One listener's: `features` are the keys of `control` that advertise what it does."""

    acts: Mapping[str, Act]
    features: tuple[str, ...]
    in_transaction: bool


REQUESTS: Final[Mapping[str, Requests]] = {
    # xenagent: a plain write of "". halt and crash are nobody's, suspend is XENBUS'.
    "windows": Requests(
        acts={
            "poweroff": Act.POWEROFF,
            "reboot": Act.REBOOT,
            "s3": Act.SLEEP,
            "s4": Act.HIBERNATE,
            "hibernate": Act.HIBERNATE,
        },
        features=("feature-poweroff", "feature-reboot", "feature-s3", "feature-s4"),
        in_transaction=False,
    ),
    # drivers/xen/manage.c: read and acknowledged in one transaction; halt has no feature key.
    "linux": Requests(
        acts={
            "poweroff": Act.POWEROFF,
            "halt": Act.POWEROFF,
            "reboot": Act.REBOOT,
            "suspend": Act.SUSPEND,
        },
        features=("feature-poweroff", "feature-reboot", "feature-suspend"),
        in_transaction=True,
    ),
}


def take(store: StoreInterface, requests: Requests) -> tuple[str, Act] | None:
    """The request that is there, acknowledged; None without one, or one not understood.

    Raises StoreError where the key may not be written: then nothing is acted on.
    """
    if requests.in_transaction:
        return store.transaction(lambda transaction: _take(store, requests, transaction))
    return _take(store, requests, None)


def _take(
    store: StoreInterface, requests: Requests, transaction: Transaction | None
) -> tuple[str, Act] | None:
    value = store.get(KEY, transaction)
    act = requests.acts.get(value) if value else None
    if value is None or act is None:
        return None
    store.write(KEY, "", transaction)
    return value, act
