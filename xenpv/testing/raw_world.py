"""A whole world with raw frontends: what a fuzzer has fresh for each example."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from xenpv.host import device as devices
from xenpv.host.diskspec import DiskSpec
from xenpv.host.image import Image, MemoryImage
from xenpv.host.vifspec import VifSpec
from xenpv.platform import Platform
from xenpv.store import permission
from xenpv.store.connection import Connection
from xenpv.store.node import Node
from xenpv.testing.raw import BACKEND_DOMID, RawBlkFront, RawGuest, RawNetFront
from xenpv.xen.loop import Chooser

# 1 MiB: 256 pages that cost nothing until they are touched.
GUEST_PAGES: Final = 256
SLACK_PAGES: Final = 64
GRANT_FRAMES: Final = 8
IMAGE_NAME: Final = "raw"
IMAGE_BYTES: Final = 64 << 10
MAC: Final = bytes((0x00, 0x16, 0x3E, 0x00, 0x00, 0x01))


def _plant(client: Connection, path: str, owner: int, reader: int, keys: Mapping[str, str]) -> None:
    """A directory of `owner` that `reader` may read, with its keys; no watch fires."""
    tree = client.server.tree
    perms = _permissions(client, owner, reader)
    node = tree.nodes[b"/"]
    at = b""
    for name in path[1:].encode().split(b"/"):
        at += b"/" + name
        node = tree.nodes.get(at) or tree.create(node, at, node.perms)
    tree.set_perms(node, perms)
    for key, value in keys.items():
        name = key.encode()
        lineage = (at + b"/" + name, *node.lineage)
        tree.install(Node(lineage, value.encode(), perms, 0, {}))
        node.add_name(name)
    tree.write(node, b"")


def _permissions(client: Connection, owner: int, reader: int) -> permission.Permissions:
    return permission.resolve(client.server, client, [(0, owner), (permission.READ, reader)])


class RawWorld:
    """A platform with one guest that has no kernel, a disk and a bridge port, both Connected.

    The guest's domain has neither a store ring nor a console: nothing but what the devices
    need. Its trees are the toolstack's for those devices.
    """

    def __init__(self, platform: Platform, image: Image, bridge: str) -> None:
        self.platform = platform
        self.image = image
        self.bridge = platform.bridge(bridge)
        domain = platform.dom0.domctl.create_domain(
            vcpus=1, max_pages=GUEST_PAGES + SLACK_PAGES, max_grant_frames=GRANT_FRAMES
        )
        domain.populate(GUEST_PAGES)
        self.guest = RawGuest(platform, domain)
        platform.images.register(IMAGE_NAME, image)
        disk = devices.vbd(DiskSpec(target=IMAGE_NAME, vdev="xvda"), domain.domid)
        nic = devices.vif(VifSpec(bridge=bridge, devid=0, mac=MAC), domain.domid, hvm=True)
        for device in (disk, nic):
            self._plug(device)
        self.vbd = RawBlkFront(self.guest, disk.devid)
        self.vif = RawNetFront(self.guest, nic.devid)
        domain.unpause()

    def _plug(self, device: devices.Device) -> None:
        """The device's directories, complete, and then the `state` that its backend looks for.

        Put into the tree, not written key by key: nobody watches them before that one write.
        """
        client = self.guest.xs.connection
        front, back = dict(device.front), dict(device.back)
        front.update(device.front_ro, backend=device.backend_path)
        back.update({"frontend": device.frontend_path, "hotplug-status": "connected"})
        state = back.pop("state")
        _plant(client, device.frontend_path, device.domid, BACKEND_DOMID, front)
        for key in device.front_ro:
            tree = client.server.tree
            node = tree.nodes[f"{device.frontend_path}/{key}".encode()]
            tree.set_perms(node, _permissions(client, BACKEND_DOMID, device.domid))
        _plant(client, device.backend_path, BACKEND_DOMID, device.domid, back)
        self.guest.xs.write(f"{device.backend_path}/state", state)

    def connect(self) -> None:
        """Both devices at once. LocalProtocolError if a backend refuses."""
        fronts = (self.vbd, self.vif)
        self.platform.run()
        for front in fronts:
            front.attach()
            front.announce()
        self.platform.run()
        for front in fronts:
            front.finish()
        self.platform.run()

    def run(self) -> int:
        """Let everything happen that is due; tasks run."""
        return self.platform.run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def world_raw(
    seed: int = 0,
    *,
    image: Image | None = None,
    bridge: str = "xenbr0",
    chooser: Chooser | None = None,
) -> RawWorld:
    """A platform, a raw guest, its disk and its interface, connected.

    `image` None: 64 KiB of zeros. Half a millisecond, so a fuzzer can have a fresh one for
    each example. Use it as a context manager, or `close` it.
    """
    platform = Platform(seed=seed, chooser=chooser)
    try:
        world = RawWorld(
            platform, MemoryImage(bytearray(IMAGE_BYTES)) if image is None else image, bridge
        )
        world.connect()
    except BaseException:
        platform.close()
        raise
    return world
