"""One seed, one digest: across processes, hash seeds and repetitions in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

JOB = textwrap.dedent("""
    import sys
    from xenpv import Disk, MemoryImage, Platform, Vif

    def job(seed):
        with Platform(seed=seed) as xen:
            xen.respond("xenbr0")
            guests = [
                xen.create(
                    name=f"guest{number}",
                    disks=[Disk(MemoryImage(bytearray(range(256)) * 512)) for _ in range(2)],
                    vifs=[Vif(), Vif(bridge="xenbr1")],
                    personality=("windows", "linux")[number],
                )
                for number in range(2)
            ]
            for guest in guests:
                guest.start()
            for guest in guests:
                disk = guest.disks[0]
                disk.write(3, disk.read(7, 5))
                disk.flush()
                for net in guest.nets:
                    net.send(b"\\xff" * 6 + net.mac + b"\\x08\\x00" + bytes(46))
            xen.run()
            for guest in guests:
                guest.shutdown()
            return xen.digest

    print(*[job(int(seed)) for seed in sys.argv[1:]])
""")


def digests(*seeds: int, hash_seed: str = "0") -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", JOB, *map(str, seeds)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def reference() -> list[str]:
    return digests(1, 2, 3)


def test_two_hash_seeds_give_one_digest(reference: list[str]) -> None:
    assert digests(1, 2, 3, hash_seed="12345") == reference


def test_what_ran_before_in_the_process_leaves_no_trace(reference: list[str]) -> None:
    one, two, three = reference
    assert digests(3, 1, 1, 2, hash_seed="7") == [three, one, one, two]


def test_seeds_give_different_schedules(reference: list[str]) -> None:
    assert len(set(reference)) == 3
