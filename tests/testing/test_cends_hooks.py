"""Every load and store of a C driver is seen, can be preempted, and can be changed before it happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenpv.abi._kernel import lib
from xenpv.testing import (
    AccessLog,
    CEnd,
    Explorer,
    explore,
    load_end,
    run_schedule,
    user_blk_backend,
)
from xenpv.testing.ends import UserEndError
from xenpv.testing.scenarios import BlkClient
from xenpv.testing.schedule import Action, Schedule, Step

FOLDER = Path(__file__).parent / "cends"
BACKEND = Path(__file__).parents[2] / "examples" / "c_backend" / "blkback.c"
R, W, A = lib.ACCESS_READ, lib.ACCESS_WRITE, lib.ACCESS_ATOMIC

# hooks.c, in its order: what, offset, size in bytes
SEEN = (
    (R, 0x100, 1), (R, 0x110, 2), (R, 0x120, 4), (R, 0x130, 8),
    (W, 0x140, 1), (W, 0x150, 2), (W, 0x160, 4), (W, 0x170, 8), (W, 0x180, 16),
    (R, 0x190, 4), (W, 0x1A0, 2), (R, 0x1B1, 4), (W, 0x1C5, 8), (R, 0x1D0, 4), (W, 0x1D0, 4),
    (R, 0x200, 112), (W, 0x280, 100), (R, 0x310, 40), (W, 0x300, 40), (W, 0x380, 64), (R, 0x400, 8),
    (W, 0x420, 12), (R, 0x440, 12),
    (W, 0x500, 4), (R, 0x500, 4), *[(A, 0x500, 4)] * 9, (R, 0x500, 4),
    (W, 0x520, 8), (A, 0x520, 8), (A, 0x530, 1),
    (R, 4095, 1), (R, 0, 7),
)  # fmt: skip


def whole(seen: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours that the compiler made of one access are one: a structure, 16 bytes."""
    joined: list[tuple[int, int, int]] = []
    for kind, offset, size in seen:
        if joined and joined[-1][0] == kind and joined[-1][1] + joined[-1][2] == offset:
            _, first, already = joined.pop()
            joined.append((kind, first, already + size))
        else:
            joined.append((kind, offset, size))
    return joined


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
@pytest.mark.parametrize("flag", ["-O0", "-O1", "-O2", "-O3"])
def test_each_access_is_seen_whatever_the_compiler_makes_of_it(flag: str, isolate: bool) -> None:
    end = load_end(FOLDER / "hooks.c", cflags=[flag], isolate=isolate)
    with user_blk_backend(end, connect=False) as world:
        world.run()
        world.vbd.attach()
        frame = int(lib.p2m_lookup(world.guest.domain.kernel, world.vbd.sring.pfn, 0))
        with AccessLog(world.platform) as log:
            world.vbd.announce()
            world.run()
        seen = [
            (one.kind, one.offset, one.size)
            for one in log.entries()
            if one.actor == 0 and one.frame == frame and not one.under_lock
        ]
        assert world.vbd.backend_key("right") == "1"
    # Structures go by field or whole: what was touched, in which order.
    assert whole(seen) == list(SEEN)


def scenario_of(end: CEnd, requests: int = 2) -> object:
    def scenario(x: Explorer) -> None:
        world = user_blk_backend(end)
        x.adopt(world.platform)
        BlkClient(world.vbd, requests, spoilt=True).start()
        x.attack(world.platform.dom0)
        x.run()

    return scenario


def test_a_driver_is_preempted_before_each_of_its_accesses_of_the_ring() -> None:
    end = load_end(BACKEND)

    def scenario(x: Explorer) -> None:
        world = user_blk_backend(end)
        x.adopt(world.platform)
        BlkClient(world.vbd, 2).start()
        x.run()

    places = set()
    for at, point in enumerate(run_schedule(scenario).points):
        if not point.is_choice and point.runnable:
            run = run_schedule(scenario, Schedule((Step(at, Action.PREEMPT),)))
            assert run.failure is None
            found = re.search(
                rf"before it (\w+) blkif\S* .* at \S*{BACKEND.name}:\d+ in (\w+),", run.words[0]
            )
            if found:
                places.add(found.groups())
    # While the client still waits to send its second request.
    assert places >= {
        ("reads", "serve_all"),
        ("writes", "respond"),
        ("writes", "store"),
        ("reads", "load"),
    }


def test_what_is_checked_and_then_read_again_is_found_with_its_line() -> None:
    """Only the adversary can make it read beside the page: between the two loads."""
    source = FOLDER / "checks.c"
    used = next(
        at for at, one in enumerate(source.read_text().splitlines(), 1) if "/* used */" in one
    )
    end = load_end(source)

    def scenario(x: Explorer) -> None:
        x.allow_double_fetches()
        scenario_of(end, 1)(x)  # type: ignore[operator]  # it is a scenario

    assert run_schedule(scenario).failure is None
    result = explore(scenario, examples=500)
    assert isinstance(result.failure, UserEndError)
    assert (result.failure.file, result.failure.line) == (str(source), used)
    assert result.failure.what == "reads 1 bytes, 1 bytes before the start of a page"
    (step,) = result.steps
    assert re.search(
        rf"before d0 reads it at \S*{source.name}:{used} in byte_of, blkif_request\[0\]\.sector_number",
        step,
    )


def test_two_worlds_at_once_have_pages_of_their_own_and_one_driver(tmp_path: Path) -> None:
    """Its static variables are those of one kernel's module, and as after loading in a new world."""
    source = tmp_path / "counts.c"
    source.write_text(
        '#include "xenpv_end.h"\n'
        "static int count = 5;\n"
        "static int probe(xenpv_end *end)\n"
        '{ return xenpv_printf(end, 0, "count", "%d", count++); }\n'
        "const struct xenpv_driver xenpv_driver = { .probe = probe };\n"
    )
    end = load_end(source)
    for _ in range(2):
        with (
            user_blk_backend(end, connect=False) as one,
            user_blk_backend(end, connect=False) as two,
        ):
            one.run()
            two.run()
            assert (one.vbd.backend_key("count"), two.vbd.backend_key("count")) == ("5", "6")


class StopHereError(Exception):
    """What a hook raises."""


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_what_the_hook_raises_ends_the_call_before_the_access(isolate: bool) -> None:
    """Before it publishes its first response: nothing of that is in the ring, the exception comes
    out of the run, and the driver goes on at its next event.
    """
    with user_blk_backend(load_end(BACKEND, isolate=isolate)) as world:
        client = BlkClient(world.vbd, 2)
        frame = int(lib.p2m_lookup(world.guest.domain.kernel, world.vbd.sring.pfn, 0))
        rsp_prod = 8

        def hook(actor: int, kind: int, where: int, offset: int, _size: int) -> None:
            if (actor, kind & 3, where, offset) == (0, W, frame, rsp_prod):
                raise StopHereError

        world.platform.hypervisor.set_hook(hook)
        client.start()
        with pytest.raises(UserEndError, match="in hook: StopHereError") as caught:
            world.run()
        assert isinstance(caught.value.__cause__, StopHereError)
        world.platform.hypervisor.set_hook(None)
        assert world.guest.domain.load32(world.vbd.sring.pfn, rsp_prod) == 0
        assert not world.vbd.sring.take()
        with pytest.raises(UserEndError):  # it was stopped: it is called no more
            world.finish()
