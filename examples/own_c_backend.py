# ruff: noqa: INP001 - a script, in no package
"""A block backend in C, compiled, attacked and explored; two mistakes can be planted in it.

python examples/own_c_backend.py

c_backend/blkback.c includes xenpv_end.h and is built by gcc. Every load and store of its ring
page is seen: what it fetches twice, and where the frontend may run in between.
"""

from __future__ import annotations

from pathlib import Path

from xenpv.testing import CEnd, Explorer, check_blk_backend, explore, load_end, user_blk_backend
from xenpv.testing.scenarios import BlkClient

SOURCE = Path(__file__).parent / "c_backend" / "blkback.c"
REQUESTS = 4


def exchange(x: Explorer, end: CEnd) -> None:
    """A frontend sends while earlier requests are worked on: each is answered, and well."""
    world = user_blk_backend(end)
    x.adopt(world.platform)
    client = BlkClient(world.vbd, REQUESTS)
    client.start()
    x.run()
    assert len(client.answers) == REQUESTS, f"{len(client.answers)} of {REQUESTS} are answered"
    assert all(status == 0 for _, status in client.answers)


def whole(x: Explorer) -> None:
    """As it is."""
    exchange(x, load_end(SOURCE))


def double_fetch(x: Explorer) -> None:
    """It checks a request where the frontend can still write it."""
    exchange(x, load_end(SOURCE, cflags=["-DDOUBLE_FETCH"]))


def lost_wakeup(x: Explorer) -> None:
    """It sleeps without a last look at the ring."""
    exchange(x, load_end(SOURCE, cflags=["-DLOST_WAKEUP"]))


def main() -> None:
    print(*explore(whole, examples=200).lines(), sep="\n")
    check_blk_backend(load_end(SOURCE))
    for scenario in (double_fetch, lost_wakeup):
        result = explore(scenario, directory="found")
        print(*result.lines(), sep="\n")
        assert result.failed


if __name__ == "__main__":
    main()
