"""A raw interface of any profile that waits for what its frontend says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.back.netfront import Net
from xenpv.back.netkeys import Offer
from xenpv.host.image import MemoryImage
from xenpv.platform import Platform
from xenpv.testing.raw_world import RawWorld


@contextmanager
def scene(profile: str = "linux", queues: int = 1) -> Iterator[Net]:
    """A raw interface that waits for its frontend's keys."""
    platform = Platform(seed=5, netback=profile, dom0_vcpus=queues)
    with RawWorld(platform, MemoryImage(bytearray(512)), "xenbr0") as world:
        platform.run()
        world.vif.attach()
        yield Net(world)


def connect(net: Net, **keys: str | None) -> Offer:
    """Write the keys, `_` for `-`, beside all others; the offer as the backend has it."""
    net.world.vif.announce({name.replace("_", "-"): text for name, text in keys.items()})
    net.world.run()
    return net.back.offer


def states(net: Net, name: str | None = None) -> list[str]:
    """Each state that the device was written into since it was made, in order."""
    prefix = f"{name or net.back.name}: "
    names = ("init_wait", "initialised", "connected", "closing", "closed", "reconfigured")
    notes = [note.text for note in net.world.platform.loop.trace.notes]
    texts = [text.removeprefix(prefix) for text in notes if text.startswith(prefix)]
    return [text for text in texts if text in names]
