# ruff: noqa: INP001 - a script, in no package
"""Plug a disk and an interface into a guest that runs, look at them as xl does, and unplug them.

python examples/hotplug.py
"""

from __future__ import annotations

from xenpv import Disk, MemoryImage, Platform, ToolstackError, Vif


def main() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="web", disks=[Disk(MemoryImage(bytes(1 << 20)))], vifs=[Vif()])
        guest.start()

        devid = guest.attach(Disk(MemoryImage(b"plugged in".ljust(1 << 20, b"\0"))))
        print(f"disk {devid}: {guest.disks[1].read(0, 1)[:10].decode()}")
        guest.attach(Vif(bridge="inner"))
        print(xen.list() + guest.block_list() + guest.network_list(), end="")

        guest.disks[1].target.handles = 1  # somebody has it open: the guest refuses
        try:
            guest.detach(guest.disks[1])
        except ToolstackError as error:
            print(error)
        guest.detach(guest.disks[1], mode="auto")  # 10 s, and then by force
        guest.detach(guest.nets[1])
        print(
            f"{len(guest.disks)} disk and {len(guest.nets)} interface after {xen.loop.now / 1e9} s"
        )
        guest.reboot()
        assert len(guest.disks) == len(guest.nets) == 1


if __name__ == "__main__":
    main()
