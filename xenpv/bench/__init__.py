"""What `xenpv bench` measures, and the limits beside it."""

from __future__ import annotations

from xenpv.bench.report import main
from xenpv.bench.table import NAMES

__all__ = ["NAMES", "main"]
