"""What drivers get wrong about grants: what stays granted, mapped or writable."""

from __future__ import annotations

from typing import Final

from xenpv.testing.zoo.defect import Defect

DEFECTS: Final[tuple[Defect, ...]] = ()
