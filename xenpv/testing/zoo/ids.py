"""What drivers get wrong about ids: what a response is matched with."""

from __future__ import annotations

from typing import Final

from xenpv.testing.zoo.defect import Defect

DEFECTS: Final[tuple[Defect, ...]] = ()
