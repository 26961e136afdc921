# ruff: noqa: INP001 - a script, in no package
"""A run on tape: every slot that was published on a disk's ring, and the ring at any moment.

python examples/ring_history.py
"""

from __future__ import annotations

from xenpv import Disk, MemoryImage, Platform
from xenpv.view.tape import Tape


def main() -> None:
    tape = Tape()
    with Platform(seed=1, tape=tape) as xen:
        guest = xen.create(name="web", disks=[Disk(MemoryImage(bytes(1 << 20)))]).start()
        before = tape.moment
        pending = [guest.disks[0].start_read(8 * at, 8) for at in range(3)]
        xen.run()
        assert all(one.is_complete for one in pending)
    (ring,) = (one for one in tape.rings if one.kind == "blkif")
    print(f"{ring.kind} of {ring.device}, {ring.size} slots")
    sent = before
    for one in tape.publications:
        if one.ring == ring.number and one.moment > before:
            what = "responses" if one.is_response else "requests"
            who = tape.events[one.moment].domid
            print(f"moment {one.moment}: d{who} publishes {len(one.slots)} {what}")
            sent = sent if one.is_response else one.moment
    for slot in tape.slots_at(ring.number, sent)[:3]:
        sector = int.from_bytes(slot.data[16:24], "little")
        print(f"slot {slot.slot}: {slot.state.value}, a request for sector {sector}")


if __name__ == "__main__":
    main()
