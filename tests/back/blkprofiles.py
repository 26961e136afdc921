"""Raw frontends of backends of each profile, and what those wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.vbd.rawfront import RawFront, make
from tests.world import make as make_world
from xenpv.back.blkprofile import PROFILES, Settings
from xenpv.back.blkunits import UNITS
from xenpv.host.image import Image, MemoryImage
from xenpv.host.xs import XsHandle

SECTORS = 1024
NAMES = ("linux", "qemu", "tapdisk", "mirage")
STATES = ("init_wait", "initialised", "connected", "closing", "closed", "reconfigured")

# Held: ports of dom0 and pages that it mapped.
Held = tuple[int, int, int]


@contextmanager
def scene(
    profile: str = "linux",
    *,
    units: str = "",
    latency_ns: int = 0,
    sector_size: int = 512,
    image: Image | None = None,
    plugged: bool = True,
    mode: str = "w",
    **back: str,
) -> Iterator[RawFront]:
    """A vbd that waits for its frontend."""
    world = make_world()
    one = PROFILES[profile]
    settings = Settings(one, UNITS[units] if units else one.units, latency_ns)
    if image is None:
        image = MemoryImage(bytearray(SECTORS * 512), sector_size=sector_size)
    yield make(world, image, settings=settings, plugged=plugged, mode=mode, **back)
    world.hypervisor.close()


def held(front: RawFront) -> Held:
    dom0 = front.world.dom0
    return dom0.evtchn.bound(), len(dom0.gnttab.maptrack), front.world.guest.gnttab.pinned()


def states(front: RawFront) -> list[str]:
    """Each state that the device was written into since it was made, in order."""
    prefix = f"{front.kind}1.51712: "
    texts = [note.text for note in front.world.loop.trace.notes]
    found = [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]
    return [text for text in found if text in STATES]


def names(front: RawFront) -> set[str]:
    """Of the keys of the backend's directory."""
    return set(front.device.store.directory(front.back))


def watcher(front: RawFront) -> XsHandle:
    """A client that hears of the backend's directory from now on."""
    xs = XsHandle(front.world.server.connect_local("a test"))
    xs.watch(front.back, "t")
    xs.connection.events.clear()
    return xs


def heard(xs: XsHandle) -> list[str]:
    """The keys that were written, in order."""
    return [path.decode().rpartition("/")[2] for path, _token in xs.connection.events]


def renew(front: RawFront) -> None:
    """A driver that starts anew: another port, since its old one closed with the connection."""
    guest = front.world.guest
    guest.evtchn.close(front.port)
    front.port = guest.evtchn.alloc_unbound(0)
    front.write("event-channel", front.port)
