"""Whole worlds made, connected and freed, and what it takes to import the package.

All of it in CPU time: nothing here waits, and other processes of the machine are not its
to answer for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time_ns
from typing import Final

import xenpv
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import LocalProtocolError
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Platform, Vif

IMAGE_BYTES: Final = 64 << 10
WARM_UP: Final = 5
MS: Final = 1e6  # in ns

_IMPORT: Final = """
from time import process_time_ns
start = process_time_ns()
from xenpv import Platform
print(process_time_ns() - start)
"""


def world() -> Generator[tuple[float, None], None, None]:
    """Milliseconds for all of it: toolstack, XenBus, store ring, vbd and vif Connected, freed."""
    for _ in range(WARM_UP):
        _world()
    while True:
        start = thread_time_ns()
        _world()
        yield (thread_time_ns() - start) / MS, None


def _world() -> None:
    with Platform() as platform:
        platform.create(
            name="bench", disks=[Disk(MemoryImage(bytearray(IMAGE_BYTES)))], vifs=[Vif()]
        ).start()


def world_raw() -> Generator[tuple[float, None], None, None]:
    """Milliseconds for the world that a fuzzer has fresh for each example."""
    for _ in range(WARM_UP):
        _world_raw()
    while True:
        start = thread_time_ns()
        _world_raw()
        yield (thread_time_ns() - start) / MS, None


def _world_raw() -> None:
    from xenpv.testing import raw_world

    with raw_world.world_raw() as made:
        backends = (made.vbd.backend, made.vif.backend)
        if any(one is None or one.state is not XenbusState.CONNECTED for one in backends):
            raise LocalProtocolError("a backend of the raw world is not connected")


def import_xenpv() -> Generator[tuple[float, None], None, None]:
    """Milliseconds of `from xenpv import Platform`, in an interpreter that has imported nothing.

    The first run compiles, into a directory of the bench's own; those that count find that.
    """
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPATH"] = str(Path(xenpv.__file__).parent.parent)
    with TemporaryDirectory(prefix="xenpv-bench-") as directory:
        environment["PYTHONPYCACHEPREFIX"] = directory
        _import_ns(environment)
        while True:
            yield _import_ns(environment) / MS, None


def _import_ns(environment: Mapping[str, str]) -> int:
    done = subprocess.run(  # noqa: S603 - this interpreter, our own text
        [sys.executable, "-c", _IMPORT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def explore() -> Generator[tuple[float, None], None, None]:
    """Milliseconds of an explored run: a fresh raw world, four requests, every checker."""
    from xenpv.testing import explore as explored
    from xenpv.testing import scenarios

    explored(scenarios.blk_requests, examples=3)
    seed = 0
    while True:
        seed += 1
        start = thread_time_ns()
        result = explored(scenarios.blk_requests, seed=seed, examples=20)
        yield (thread_time_ns() - start) / MS / result.examples, None
