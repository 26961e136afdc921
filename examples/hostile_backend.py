# ruff: noqa: INP001 - a script, in no package
"""A backend that lies, under the Windows disk driver: what must a frontend survive?

python examples/hostile_backend.py
"""

from __future__ import annotations

from collections.abc import Callable

from xenpv.abi.blkif import BLKIF_RSP
from xenpv.testing import BackWorld, check_all, world_back


def an_error(world: BackWorld, request: bytes) -> None:
    world.vbd.answer(request, BLKIF_RSP.ERROR)


def a_response_twice(world: BackWorld, request: bytes) -> None:
    for _ in range(2):
        world.vbd.answer(request, BLKIF_RSP.OKAY)


def an_id_of_nobody(world: BackWorld, request: bytes) -> None:
    wrong = request[:8] + (77).to_bytes(8, "little") + request[16:]
    world.vbd.answer(wrong, BLKIF_RSP.OKAY)


def an_index_beyond_the_ring(world: BackWorld, _request: bytes) -> None:
    world.vbd.sring.rsp_prod = 1000
    world.vbd.notify()


LIES: tuple[Callable[[BackWorld, bytes], None], ...] = (
    an_error, a_response_twice, an_id_of_nobody, an_index_beyond_the_ring,
)  # fmt: skip


def main() -> None:
    for lie in LIES:
        with world_back(seed=1) as world:
            world.vbd.hold = True  # answer nothing by itself
            pending = world.disk.start_read(0, 1)
            world.disk.start_read(8, 1)
            world.run()
            request, _second = world.vbd.sring.take()
            lie(world, request)
            world.run()
            state = world.vbd.device.frontend_state.name
            print(f"{lie.__name__}: the read {pending.srb_status.name}, frontend {state}")
            check_all(world.platform)


if __name__ == "__main__":
    main()
