"""Pages of a file by their numbers: what a core and a saved guest are to whoever decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError
from xenpv.view.dump.kinds import KINDS, RING_PAGES_MAX, dump_page, guess
from xenpv.view.dump.source import Selection, chosen
from xenpv.view.dump.table import Dumps
from xenpv.xen.memory import CONSOLE_PFN, XENSTORE_PFN

PAGE_SIZE: Final = 4096
SCAN_PAGES_MAX: Final = 1 << 16
ZERO_PAGE: Final = bytes(PAGE_SIZE)


@attrs.frozen
class Memory:
    """Where each page of a file lies: an offset in bytes, or 0 for one that reads zero."""

    path: Path
    places: Mapping[int, int]

    def read(self, pfns: Iterable[int]) -> bytes | None:
        """Pages one after the other; None if one is not there. ConfigError: it cannot be read."""
        parts = []
        try:
            with self.path.open("rb") as file:
                for pfn in pfns:
                    at = self.places.get(pfn)
                    if at is None:
                        return None
                    if at:
                        file.seek(at)
                    # What a file that was cut lacks reads zero.
                    page = file.read(PAGE_SIZE) if at else ZERO_PAGE
                    parts.append(page.ljust(PAGE_SIZE, b"\0"))
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(self.path)) from None
        return b"".join(parts)

    def likely(self) -> Iterator[tuple[int, str]]:
        """Pages that look like a ring: pfn and kind. The first SCAN_PAGES_MAX are looked at."""
        with self.path.open("rb") as file:
            for pfn, at in list(self.places.items())[:SCAN_PAGES_MAX]:
                if not at:
                    continue
                file.seek(at)
                data = file.read(PAGE_SIZE)
                # Most pages end here: a ring's header is 48 zeros behind four words.
                if len(data) == PAGE_SIZE and not any(data[16:64]) and any(data[:16]):
                    kind = guess(data)
                    if kind:
                        yield pfn, kind


@attrs.frozen
class Known:
    """What is at some pages, and what it is called."""

    name: str
    kind: str
    pfns: tuple[int, ...]


# Where libxc's domain builder puts both pages of an HVM guest.
SPECIAL: Final = (
    Known("store ring", "xenstore", (XENSTORE_PFN,)),
    Known("console", "console", (CONSOLE_PFN,)),
)


def select(memory: Memory, known: Callable[[], Sequence[Known]], wanted: Selection) -> Dumps:
    """What was asked for: some pages as a kind, or all that is known. ConfigError."""
    if not wanted.places:
        found = Dumps()
        for one in known():
            data = memory.read(one.pfns[:RING_PAGES_MAX])
            if data is not None and not KINDS[one.kind].check(len(data)):
                found.append(dump_page(data, one.kind, one.name, most=wanted.most))
        return chosen(found, wanted.names)
    if not wanted.kind:
        raise ConfigError("--pfn: expected --as KIND too", file=str(memory.path))
    found = Dumps()
    for place in wanted.places:
        if place.domid is not None:
            text = "--pfn: a file has the pages of one domain: leave its number away"
            raise ConfigError(text, file=str(memory.path))
        pages = KINDS[wanted.kind].check(len(place.pfns) * PAGE_SIZE)
        data = None if pages else memory.read(place.pfns)
        if data is None:
            missing = [pfn for pfn in place.pfns if pfn not in memory.places]
            text = pages or f"there is no page {missing[0]:#x} in it"
            raise ConfigError(f"--pfn {text}" if pages else text, file=str(memory.path))
        name = f"pfn {place.pfns[0]:#x}"
        found.append(dump_page(data, wanted.kind, name, most=wanted.most))
    return found
