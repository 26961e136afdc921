"""The test kit: raw ends, exploration, checkers, the defect zoo, replays.

Names are looked up when they are first used: `import xenpv.testing` imports nothing else.
"""

from __future__ import annotations

from typing import Any, Final

# name: the module that has it
_HOME: Final = {
    "Access": "access",
    "AccessLog": "access",
    "DoubleFetch": "access",
    "BackWorld": "back_world",
    "world_back": "back_world",
    "CheckFailed": "checkers",
    "check_all": "checkers",
    "check_grants": "checkers",
    "check_ports": "checkers",
    "check_slots": "checkers",
    "check_wakeups": "checkers",
    "ExplorationFailed": "exploration",
    "Result": "exploration",
    "explore": "exploration",
    "Explorer": "explorer",
    "RawBlkBack": "raw_back",
    "RawNetBack": "raw_back",
    "RawBlkFront": "raw_front",
    "RawGuest": "raw_front",
    "RawNetFront": "raw_front",
    "RawWorld": "raw_world",
    "world_raw": "raw_world",
    "Replay": "replay",
    "load_replay": "replay",
    "KnownRing": "rings",
    "rings_of": "rings",
    "Run": "run",
    "run_schedule": "run",
    "Action": "schedule",
    "Schedule": "schedule",
    "Step": "schedule",
    "RawBackSring": "sring",
    "RawSring": "sring",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
