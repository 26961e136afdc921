"""What is said between the two ends of a live migration (tools/xl/xl_migrate.c, xl.h).

    destination                      source
    banner                       ->
                                 <-  header, configuration
                                 <-  memory, round after round, then what else the guest is
    ready                        ->
                                 <-  go
    report, status               ->
    (go, if the status is not 0) ->

The lines are fixed. All but the banner end in a NUL.
"""

from __future__ import annotations

import enum
from typing import Final

BANNER: Final = b"xl migration receiver ready, send binary domain data.\n"
READY: Final = b"domain received, ready to unpause\0"
GO: Final = b"domain is yours, you are cleared to unpause\0"
REPORT: Final = b"my copy unpause results are as follows\0"

INCOMING: Final = "--incoming"  # behind the name, at the destination
AWAY: Final = "--migratedaway"  # behind the name, at the source

ROUNDS_MAX: Final = 5  # of pre-copy: LIBXL_XGS_POLICY_MAX_ITERATIONS
DIRTY_MIN: Final = 50  # pages; a round that starts with fewer is the last
BANDWIDTH: Final = 125_000_000  # bytes a second of virtual time: a gigabit


class SendStep(enum.Enum):
    """What the source does, in this order; one that waits is tried again when bytes came."""

    BANNER = "waits for the banner"
    HEADER = "sends header and configuration"
    LOG_DIRTY = "turns on log-dirty"
    PRECOPY = "sends a round of memory"
    SUSPEND = "suspends the guest"
    LAST_COPY = "sends the last memory"
    CONTEXT = "sends the guest's state"
    READY = "waits for ready"
    RENAME = "renames its copy"
    GO = "sends go"
    REPORT = "waits for the report"
    STATUS = "waits for the status"
    DESTROY = "destroys its copy"
    # after a status that is not 0
    GO_BACK = "waits for go, back"
    RENAME_BACK = "renames its copy back"
    # after that, and after what failed earlier
    RESUME = "resumes its copy"
    DONE = "is done"


class ReceiveStep(enum.Enum):
    """What the destination does, in this order."""

    BANNER = "sends the banner"
    HEADER = "waits for header and configuration"
    CREATE = "creates the domain"
    STREAM = "takes in memory and state"  # in the middle of CREATE
    REBUILD = "rebuilds the guest"
    READY = "sends ready"
    GO = "waits for go"
    RENAME = "renames its copy"
    UNPAUSE = "unpauses its copy"
    REPORT = "sends the report"
    STATUS = "sends the status"
    DONE = "is done"


# Where the channel fails in one of these the source cannot know whether the destination runs.
WINDOW: Final = frozenset({SendStep.GO, SendStep.REPORT, SendStep.STATUS, SendStep.GO_BACK})
