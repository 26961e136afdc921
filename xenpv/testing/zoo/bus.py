"""What XenBus drivers get wrong: event channels, states and the keys of a device."""

from __future__ import annotations

from typing import Final

from xenpv.testing.zoo.defect import Defect

DEFECTS: Final[tuple[Defect, ...]] = ()
