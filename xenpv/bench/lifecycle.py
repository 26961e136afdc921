"""What a toolstack's commands take per guest, on a platform with one guest, ten, a hundred.

A Windows guest with a disk and an interface each. The limit of each is the same command where
there are a tenth as many guests: what is linear takes no longer for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time_ns
from typing import Final, Self

from xenpv.guest import Guest
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Platform, Vif

MANY: Final = 100
FEW: Final = 10
ONE: Final = 1

IMAGE_BYTES: Final = 64 << 10
MEMORY_MIB: Final = 32
MS: Final = 1e6  # in ns


class Fleet:
    """A host with so many guests, and another beside it, to which they can go."""

    def __init__(self, count: int) -> None:
        self.count = count
        here = Platform()
        self.hosts = [here, Platform(loop=here.loop)]
        self.guests: list[Guest] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.close()

    def populate(self) -> None:
        """Create them and let them boot."""
        here = self.hosts[0]
        self.guests = [
            here.create(
                name=f"bench{number}",
                memory_mib=MEMORY_MIB,
                disks=[Disk(MemoryImage(bytearray(IMAGE_BYTES)))],
                vifs=[Vif()],
            ).start()
            for number in range(self.count)
        ]

    def clear(self) -> None:
        """Destroy them."""
        guests, self.guests = self.guests, []
        for guest in guests:
            guest.destroy()


Operation = Callable[[Fleet], None]


def create(fleet: Fleet) -> None:
    """Trees, devices, boot, everything Connected."""
    fleet.populate()


def destroy(fleet: Fleet) -> None:
    """Devices by force, the trees, the domain."""
    fleet.clear()


def suspend(fleet: Fleet) -> None:
    """Suspended by control/shutdown, and resumed in place."""
    for guest in fleet.guests:
        guest.suspend()
        guest.resume()


def save(fleet: Fleet) -> None:
    """Written into a file and destroyed; read from it, in a new domain, everything Connected."""
    here = fleet.hosts[0]
    with TemporaryDirectory(prefix="xenpv-bench-") as directory:
        path = Path(directory) / "guest.save"
        for number, guest in enumerate(fleet.guests):
            guest.save(path)
            fleet.guests[number] = here.restore(path)


def migrate(fleet: Fleet) -> None:
    """To the other host, live; the next time they come back."""
    fleet.guests = [guest.migrate(fleet.hosts[1]) for guest in fleet.guests]
    fleet.hosts.reverse()


def _ms(fleet: Fleet, operation: Operation) -> float:
    """Milliseconds for each guest."""
    if operation is create:
        fleet.clear()
    elif not fleet.guests:
        fleet.populate()
    start = thread_time_ns()
    operation(fleet)
    return (thread_time_ns() - start) / MS / fleet.count


def many(operation: Operation) -> Generator[tuple[float, float], None, None]:
    """For each of MANY, and for each of FEW."""
    yield from _compare(operation, MANY, FEW)


def few(operation: Operation) -> Generator[tuple[float, float], None, None]:
    """For each of FEW, and for a single one."""
    yield from _compare(operation, FEW, ONE)


def _compare(
    operation: Operation, more: int, less: int
) -> Generator[tuple[float, float], None, None]:
    with ExitStack() as stack:
        fleets = [stack.enter_context(Fleet(count)) for count in (more, less)]
        for fleet in fleets:
            _ms(fleet, operation)
        while True:
            # As many of either: a few guests alone are over before the clock has moved.
            ms = [_ms(fleets[1], operation) for _ in range(more // less)]
            yield _ms(fleets[0], operation), sum(ms) / len(ms)
