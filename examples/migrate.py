# ruff: noqa: INP001 - a script, in no package
"""A guest moves to another host while it works; then the channel breaks at the worst moment.

python examples/migrate.py
"""

from __future__ import annotations

from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.migration.channel import Channel, Fault, Harm
from xenpv.migration.migrate import Migration, MigrationFailed

BANNER, READY, REPORT = range(3)  # what a destination sends, in this order


def main() -> None:
    # Two machines with one clock: run and advance of either let both go on.
    with Platform(seed=1) as paris, Platform(seed=1, loop=paris.loop) as lyon:
        lyon.respond("xenbr0")
        disk = Disk(MemoryImage(bytes(1 << 20)))
        worker = paris.create(name="worker", disks=[disk], vifs=[Vif()]).start()
        work = worker.disks[0].start_write(0, b"begun in Paris".ljust(512))

        moved = worker.migrate(lyon)
        assert moved.counterpart(work).result() == b""  # under way, and done once
        print(f"at Lyon, domain {moved.domid}: {moved.disks[0].read(0, 1)[:14].decode()}")

        # Back, but nothing arrives any more from the moment the destination runs its copy.
        channel = Channel(paris.loop, to_source=[Fault(REPORT, Harm.CUT)])
        try:
            Migration(moved, paris, channel=channel).run()
        except MigrationFailed as error:
            assert not moved.running  # suspended, since the other one may run: it cannot know
            print(f"by hand: {error.by_hand}")
            error.source.destroy()
            back = error.destination
        assert back is not None
        print(f"at Paris, domain {back.domid}: {back.disks[0].read(0, 1)[:14].decode()}")
        back.shutdown()


if __name__ == "__main__":
    main()
