"""What several commands read of their arguments, and what a command is added to."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Commands(Protocol):
    """What `add_subparsers` returns; argparse has no public name for its type."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser: ...


def number(text: str) -> int:
    """A count or a seed of up to 18 digits."""
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """More than none, and less than a million of them."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, not {text!r}")
    return found
