"""Numbered conformance cases: what an end must do, whatever its peer does.

    check_blk_backend(MyBackend)          # raises CasesFailed, which lists what does not hold
    for case in cases("blk-backend"): ...

A suite tests one end: `factory` makes it, None is ours. Ids are stable and never used again.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from xenpv.errors import LocalProtocolError
from xenpv.testing.cases.suite import Case, CaseResult, CasesFailed, Outcome, Suite

__all__ = [
    "SUITES",
    "Case",
    "CaseResult",
    "CasesFailed",
    "Outcome",
    "Suite",
    "all_cases",
    "case",
    "cases",
    "suite",
]

# name: the modules with its cases; the first has `SUITE`, the others add to it.
SUITES: Final[dict[str, tuple[str, ...]]] = {
    "blk-backend": (
        "blkscene",
        "blkback",
        "blkrequests",
        "blkhost",
        "blkhostile",
        "blktables",
        "blkhostilering",
    ),
    "blk-frontend": ("blkfrontscene", "blkfront", "blkfronthostile", "blkfrontstates"),
    "net-backend": (
        "netback",
        "nettxhostile",
        "netrx",
        "netrxhostile",
        "netcontrol",
        "netevents",
        "netstates",
    ),
    "net-frontend": ("netfront", "netfronthostile", "netfrontextras", "netfrontstates"),
    "store": ("store", "storewatch", "storeguest", "storehostile"),
    "grant": ("grant", "grantcopy"),
    "xenbus-backend": ("busback",),
    "xenbus-frontend": ("busfront",),
    "evtchn": ("evtchn", "evtchnfifo"),
}


def suite(name: str) -> Suite:
    """A suite with all its cases. LocalProtocolError: no such one."""
    if name not in SUITES:
        raise LocalProtocolError(f"no suite is called {name!r}: expected {', '.join(SUITES)}")
    first, *others = (import_module(f"{__name__}.{module}") for module in SUITES[name])
    del others  # imported for the cases that they add
    found: Suite = first.SUITE
    return found


def cases(name: str) -> tuple[Case, ...]:
    """The cases of a suite, by id. LocalProtocolError: no such suite."""
    return tuple(sorted(suite(name).cases, key=lambda one: one.id))


def all_cases() -> dict[str, Case]:
    """Every case by id, suite by suite."""
    return {one.id: one for name in SUITES for one in cases(name)}


def case(name: str) -> Case:
    """A case by its id. LocalProtocolError: no such one."""
    found = all_cases().get(name)
    if found is None:
        raise LocalProtocolError(f"no case is called {name!r}: `xenpv cases --list` lists them")
    return found
