"""The test kit: raw ends, exploration, checkers, the defect zoo, replays.

Names are looked up when they are first used: `import xenpv.testing` imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from xenpv.testing.access import Access, AccessLog, DoubleFetch
    from xenpv.testing.back_world import BackWorld, world_back
    from xenpv.testing.blk_world import BlkWorld, world_blk
    from xenpv.testing.cases import Case, CaseResult, CasesFailed, Outcome
    from xenpv.testing.cases.blkfrontscene import check_blk_frontend
    from xenpv.testing.cases.blkscene import check_blk_backend
    from xenpv.testing.cases.busback import check_xenbus_backend
    from xenpv.testing.cases.busfront import check_xenbus_frontend
    from xenpv.testing.cases.netfrontscene import check_net_frontend
    from xenpv.testing.cases.netscene import check_net_backend
    from xenpv.testing.cases.store import check_store
    from xenpv.testing.cends import CEnd, load_end
    from xenpv.testing.census import Census, leaks, take_census
    from xenpv.testing.checkers import (
        CheckFailed,
        check_all,
        check_grants,
        check_ports,
        check_slots,
        check_wakeups,
    )
    from xenpv.testing.ends import (
        BackendWorld,
        BlkBackend,
        BlkFrontend,
        ConnectingBackend,
        ConnectingFrontend,
        End,
        EndPort,
        FrontendWorld,
        NetBackend,
        NetFrontend,
        Operation,
        Transfer,
        UserEndError,
        plug_backend,
        user_blk_backend,
        user_blk_frontend,
        user_net_backend,
        user_net_frontend,
    )
    from xenpv.testing.exploration import ExplorationFailed, Result, explore
    from xenpv.testing.explorer import Explorer
    from xenpv.testing.kit import find_bugs, hunt_all
    from xenpv.testing.linux_blk import LinuxBlk
    from xenpv.testing.linux_net import LinuxNet, NetWorld, world_net
    from xenpv.testing.overlay import fuzz_one
    from xenpv.testing.raw_back import RawBlkBack, RawNetBack
    from xenpv.testing.raw_front import RawBlkFront, RawGuest, RawNetFront
    from xenpv.testing.raw_world import RawWorld, world_raw
    from xenpv.testing.replay import Replay, load_replay
    from xenpv.testing.run import Run, run_schedule
    from xenpv.testing.schedule import Action, Schedule, Step
    from xenpv.testing.sring import RawBackSring, RawSring
    from xenpv.view.rings import KnownRing, rings_of

# name: the module that has it, below this one or in full
_HOME: Final = {
    "hunt_all": "kit",
    "find_bugs": "kit",
    "check_xenbus_frontend": "cases.busfront",
    "check_xenbus_backend": "cases.busback",
    "check_store": "cases.store",
    "Outcome": "cases",
    "CasesFailed": "cases",
    "CaseResult": "cases",
    "Case": "cases",
    "BackendWorld": "ends",
    "BlkBackend": "ends",
    "BlkFrontend": "ends",
    "ConnectingBackend": "ends",
    "ConnectingFrontend": "ends",
    "End": "ends",
    "EndPort": "ends",
    "FrontendWorld": "ends",
    "NetBackend": "ends",
    "NetFrontend": "ends",
    "Operation": "ends",
    "Transfer": "ends",
    "UserEndError": "ends",
    "plug_backend": "ends",
    "user_blk_backend": "ends",
    "user_blk_frontend": "ends",
    "user_net_backend": "ends",
    "user_net_frontend": "ends",
    "Access": "access",
    "AccessLog": "access",
    "Action": "schedule",
    "BackWorld": "back_world",
    "Census": "census",
    "CheckFailed": "checkers",
    "DoubleFetch": "access",
    "ExplorationFailed": "exploration",
    "Explorer": "explorer",
    "KnownRing": "xenpv.view.rings",
    "BlkWorld": "blk_world",
    "CEnd": "cends",
    "LinuxBlk": "linux_blk",
    "LinuxNet": "linux_net",
    "NetWorld": "linux_net",
    "RawBackSring": "sring",
    "RawBlkBack": "raw_back",
    "RawBlkFront": "raw_front",
    "RawGuest": "raw_front",
    "RawNetBack": "raw_back",
    "RawNetFront": "raw_front",
    "RawSring": "sring",
    "RawWorld": "raw_world",
    "Replay": "replay",
    "Result": "exploration",
    "Run": "run",
    "Schedule": "schedule",
    "Step": "schedule",
    "check_all": "checkers",
    "check_blk_backend": "cases.blkscene",
    "check_blk_frontend": "cases.blkfrontscene",
    "check_grants": "checkers",
    "check_net_backend": "cases.netscene",
    "check_net_frontend": "cases.netfrontscene",
    "check_ports": "checkers",
    "check_slots": "checkers",
    "check_wakeups": "checkers",
    "explore": "exploration",
    "fuzz_one": "overlay",
    "leaks": "census",
    "load_end": "cends",
    "load_replay": "replay",
    "rings_of": "xenpv.view.rings",
    "run_schedule": "run",
    "take_census": "census",
    "world_back": "back_world",
    "world_blk": "blk_world",
    "world_net": "linux_net",
    "world_raw": "raw_world",
}

__all__ = [
    "Access",
    "AccessLog",
    "Action",
    "BackWorld",
    "BackendWorld",
    "BlkBackend",
    "BlkFrontend",
    "BlkWorld",
    "CEnd",
    "Case",
    "CaseResult",
    "CasesFailed",
    "Census",
    "CheckFailed",
    "ConnectingBackend",
    "ConnectingFrontend",
    "DoubleFetch",
    "End",
    "EndPort",
    "ExplorationFailed",
    "Explorer",
    "FrontendWorld",
    "KnownRing",
    "LinuxBlk",
    "LinuxNet",
    "NetBackend",
    "NetFrontend",
    "NetWorld",
    "Operation",
    "Outcome",
    "RawBackSring",
    "RawBlkBack",
    "RawBlkFront",
    "RawGuest",
    "RawNetBack",
    "RawNetFront",
    "RawSring",
    "RawWorld",
    "Replay",
    "Result",
    "Run",
    "Schedule",
    "Step",
    "Transfer",
    "UserEndError",
    "cases",
    "check_all",
    "check_blk_backend",
    "check_blk_frontend",
    "check_grants",
    "check_net_backend",
    "check_net_frontend",
    "check_ports",
    "check_slots",
    "check_store",
    "check_wakeups",
    "check_xenbus_backend",
    "check_xenbus_frontend",
    "explore",
    "find_bugs",
    "fuzz_one",
    "hunt_all",
    "leaks",
    "load_end",
    "load_replay",
    "machines",
    "plug_backend",
    "rings_of",
    "run_schedule",
    "scenarios",
    "strategies",
    "take_census",
    "user_blk_backend",
    "user_blk_frontend",
    "user_net_backend",
    "user_net_frontend",
    "world_back",
    "world_blk",
    "world_net",
    "world_raw",
    "zoo",
]


_MODULES: Final = ("cases", "machines", "scenarios", "strategies", "zoo")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = home if home.startswith("xenpv.") else f"{__name__}.{home}"
    found = getattr(import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
