"""Where each defect of net, bus and store is found."""

from __future__ import annotations

# id: (examples that are enough, text of the failure)
FOUND: dict[str, tuple[int, str]] = {}
