"""What platforms showed when they closed: for replays, which are told whole.

    with witness() as seen:
        case.run()
    print(*seen.tables, sep="\\n")

Nothing of it is kept in an ordinary run: a failure is run again, which gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from typing import Any, Final

import attrs

from xenpv.host.network import Bridge, Network
from xenpv.host.pcapng import PcapngCapture, PcapngWriter
from xenpv.platform import Platform
from xenpv.testing import reports

PLATFORMS_MAX: Final = 4  # whose rings and stores are kept, the newest


@attrs.define(eq=False)
class Shown:
    """A platform as it was when it closed: its last events, ring entries, store nodes as lines."""

    digest: str
    tail: list[str]
    tables: list[str]
    store: list[str]


class Witness:
    """Platforms that closed while it looked, oldest first, and every packet of their bridges."""

    def __init__(self) -> None:
        self.platforms: list[Shown] = []
        self._whole = blake2b(digest_size=16)
        self._file = BytesIO()
        self._writer = PcapngWriter(self._file)

    @property
    def digest(self) -> str:
        """32 hex digits over all that happened on all of them."""
        return self._whole.hexdigest()

    @property
    def tail(self) -> tuple[str, ...]:
        return tuple(line for one in self.platforms for line in one.tail)

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(line for one in self.platforms for line in one.tables)

    @property
    def store(self) -> tuple[str, ...]:
        return tuple(line for one in self.platforms for line in one.store)

    @property
    def packets(self) -> bytes:
        """A pcapng file of the bridges; empty if no packet crossed one."""
        return self._file.getvalue() if self._writer.packets else b""

    def closes(self, platform: Platform) -> None:
        """Look at a platform that is about to close; at a closed one there is nothing to see."""
        if platform.hypervisor.closed:
            return
        digest = platform.loop.trace.hexdigest()
        self._whole.update(digest.encode())
        self.platforms.append(
            Shown(
                digest=digest,
                tail=reports.tail(platform),
                tables=reports.tables(platform),
                store=reports.store(platform),
            )
        )
        del self.platforms[:-PLATFORMS_MAX]

    def taps(self, bridge: Bridge) -> None:
        """Keep what crosses a bridge."""
        bridge.taps.append(PcapngCapture(self._writer))


@contextmanager
def witness() -> Iterator[Witness]:
    """Look at every platform that closes while the context lasts."""
    seen = Witness()
    close, bridge = Platform.close, Network.bridge

    def closes(platform: Platform) -> None:
        seen.closes(platform)
        close(platform)

    def bridges(network: Network, name: str) -> Bridge:
        known = name in network.bridges
        found = bridge(network, name)
        if not known:
            seen.taps(found)
        return found

    places: tuple[tuple[Any, str, Any, Any], ...] = (
        (Platform, "close", closes, close),
        (Network, "bridge", bridges, bridge),
    )
    for where, name, new, _ in places:
        setattr(where, name, new)
    try:
        yield seen
    finally:
        for where, name, _, old in places:
            setattr(where, name, old)
