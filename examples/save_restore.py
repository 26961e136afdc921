# ruff: noqa: INP001 - a script, in no package
"""A guest is saved in the middle of its work, and goes on twice: a fork of one machine.

python examples/save_restore.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.vbd.disk import Disk as GuestDisk

LOG = 1000  # sectors that the guest writes one after the other


def work(disk: GuestDisk, first: int, last: int, mark: bytes) -> None:
    for sector in range(first, last):
        disk.write(sector, mark.ljust(512, b"."))
    disk.flush()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "worker.save"
        with Platform(seed=1) as xen:
            disk = Disk(MemoryImage(bytes(512 * LOG)))
            worker = xen.create(name="worker", disks=[disk], vifs=[Vif()]).start()
            work(worker.disks[0], 0, 500, b"before")
            worker.save(path)
        print(f"saved: {path.stat().st_size} bytes")

        digests = []
        for mark, last in ((b"one way", 600), (b"another", LOG), (b"another", LOG)):
            with Platform(seed=2) as xen:
                worker = xen.restore(path)
                work(worker.disks[0], 500, last, mark)
                ends = [worker.disks[0].read(sector, 1)[:7] for sector in (499, 500, last - 1)]
                assert ends == [b"before.", mark, mark]
                worker.shutdown()
                digests.append(xen.digest)
                print(f"{mark.decode()}: digest {xen.digest}")
        assert digests[1] == digests[2] != digests[0]


if __name__ == "__main__":
    main()
