# ruff: noqa: INP001, S603, S606, S607 - a script, in no package, that runs the tools by name
"""Linux pings a Windows guest: the kernel of this host on the guest's bridge, by a TAP.

Needs root, in a network namespace of its own that it makes for itself (`unshare --net`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from xenpv import Platform, Vif
from xenpv.host.tap import Tap
from xenpv.taps import Pump, Taps

WANTED = ("ip", "ping", "unshare")


def main() -> None:
    with Platform(seed=7) as xen, Taps(xen) as taps:
        guest = xen.create(name="web", vifs=[Vif(ip="10.9.0.2/24")]).start()
        tap = Tap.open("tap0")
        taps.join(xen.bridge("xenbr0"), tap)
        subprocess.run(["ip", "addr", "add", "10.9.0.1/24", "dev", tap.name], check=True)
        subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)
        command = ["ping", "-c", "3", "-i", "0.1", "10.9.0.2"]
        pump = Pump(taps)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
            while ping.poll() is None:
                pump.serve(seconds=0.1)
            assert ping.stdout is not None
            print(ping.stdout.read(), end="")
        pump.close()
        tap.close()
        sent = guest.nets[0].statistics.sent_frames
        print(f"the guest sent {sent} frames, digest {xen.digest}")


if __name__ == "__main__":
    if sys.argv[1:] == ["inside"]:
        main()
    elif os.geteuid() != 0 or not all(map(shutil.which, WANTED)):
        print(f"needs root and {', '.join(WANTED)}")
    else:
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, "inside"])
