r"""What XenVbd reads of the registry when it starts: values of its service's key Parameters.

Those that are not the driver's own are xenpv's: how this model of it counts sectors, and what it
does that the original never does. Each driver value is a REG_DWORD, absent: not overridden.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.vbd import quirks as table
from xenpv.vbd.units import SPEC2024, UNITS, SectorUnits

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry

PATH: Final = "Services\\XENVBD\\Parameters"
SECTOR_UNITS: Final = "XenpvSectorUnits"
PERSISTENT: Final = "XenpvPersistentGrants"
SENSE_DATA: Final = "XenpvSenseData"
QUIRKS: Final = "XenpvQuirks"
RING_PAGE_ORDER: Final = "max-ring-page-order"
QUEUES: Final = "multi-queue-max-queues"
# Keys of the backend that a value of the same name stands in for.
OVERRIDES: Final = (
    "removable",
    "feature-max-indirect-segments",
    "feature-persistent",
    "feature-barrier",
    "feature-flush-cache",
    "feature-discard",
    "discard-enable",
    "discard-secure",
    "discard-alignment",
    "discard-granularity",
)


@attrs.frozen(kw_only=True)
class Parameters:
    """Of one guest's driver.

    `ring_page_order` and `queues` None: the personality's own. `overrides`: name and number of
    what is not read from the backend. `units`: what a sector is. `persistent`: grants are kept
    if the backend keeps them too. `sense_data`: CHECK CONDITION with sense data and unit
    attentions, as SPC has them. `quirks`: names of xenpv.vbd.quirks that are switched on;
    LocalProtocolError for another name.
    """

    ring_page_order: int | None = None
    queues: int | None = None
    overrides: tuple[tuple[str, int], ...] = ()
    units: SectorUnits = SPEC2024
    persistent: bool = False
    sense_data: bool = False
    quirks: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        table.check(self.quirks)

    @classmethod
    def read(cls, registry: Registry) -> Parameters:
        """Those of a machine; without the key, DEFAULTS itself."""
        if registry.find(PATH) is None:
            return DEFAULTS

        def number(name: str) -> int | None:
            value = registry.get(PATH, name)
            return value if isinstance(value, int) else None

        found = ((name, number(name)) for name in OVERRIDES)
        return cls(
            ring_page_order=number(RING_PAGE_ORDER),
            queues=number(QUEUES),
            overrides=tuple((name, value) for name, value in found if value is not None),
            units=UNITS.get(registry.string(PATH, SECTOR_UNITS) or "", SPEC2024),
            persistent=registry.dword(PATH, PERSISTENT, 0) != 0,
            sense_data=registry.dword(PATH, SENSE_DATA, 0) != 0,
            quirks=tuple(
                name for name in registry.strings(PATH, QUIRKS) or () if name in table.QUIRKS
            ),
        )

    def write(self, registry: Registry) -> None:
        """So that `read` of that registry gives these."""
        registry.set(PATH, SECTOR_UNITS, self.units.name)
        registry.set(PATH, PERSISTENT, int(self.persistent))
        registry.set(PATH, SENSE_DATA, int(self.sense_data))
        registry.set(PATH, QUIRKS, tuple(self.quirks))
        numbers: Iterable[tuple[str, int | None]] = (
            (RING_PAGE_ORDER, self.ring_page_order),
            (QUEUES, self.queues),
            *self.overrides,
        )
        for name, value in numbers:
            if value is not None:
                registry.set(PATH, name, value)


DEFAULTS: Final = Parameters()
