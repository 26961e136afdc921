"""What clients of the store get wrong: transactions and watches."""

from __future__ import annotations

from typing import Final

from xenpv.testing.zoo.defect import Defect

DEFECTS: Final[tuple[Defect, ...]] = ()
