# ruff: noqa: INP001, S603, S607 - a script, in no package, that runs a program by its name
"""A guest on a snapshot: what it writes is in the qcow2, and the image below stays as it is.

Needs qemu-utils: apt-get install qemu-utils

python examples/qcow2_disk.py
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from xenpv import Disk, Platform


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, top = Path(folder) / "base.img", Path(folder) / "top.qcow2"
        base.write_bytes(b"golden".ljust(1 << 20, b"\0"))
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top]
        subprocess.run(create, check=True)

        with Platform(seed=1) as xen:
            guest = xen.create(name="web", disks=[Disk(top, format="qcow2")]).start()
            disk = guest.disks[0]
            print(f"the guest reads {disk.read(0, 1)[:6].decode()}, and writes")
            disk.write(0, b"mine".ljust(512, b"\0"))
            disk.flush()
            print(guest.block_list(), end="")

        raw = Path(folder) / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", top, raw], check=True)
        print(f"in the snapshot is {raw.read_bytes()[:4].decode()}")
        print(f"in the image below {base.read_bytes()[:6].decode()}")


if __name__ == "__main__":
    main()
