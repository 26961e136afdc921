"""What network drivers get wrong: netback, and XenVif where it is told."""

from __future__ import annotations

from typing import Final

from xenpv.testing.zoo.defect import Defect

DEFECTS: Final[tuple[Defect, ...]] = ()
