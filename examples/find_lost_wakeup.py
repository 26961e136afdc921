# ruff: noqa: INP001 - a script, in no package
"""A network backend of one's own, with a mistake that shows in one interleaving of many.

python examples/find_lost_wakeup.py

The backend drains its ring and asks for an event at the next request, but does not look once
more after it has asked. A frame that is sent just between the two waits for ever.
"""

from __future__ import annotations

from collections import deque

from xenpv.testing import Explorer, RawNetBack, explore

FRAMES = 3


class Hasty(RawNetBack):
    """RING_FINAL_CHECK_FOR_REQUESTS without the final check."""

    def event(self) -> None:
        slots = deque(self.tx.take(ask=False))
        while slots:
            self.receive(slots)
        self.tx.req_event = self.tx.ring.req_cons + 1


def scenario(x: Explorer) -> None:
    """A Windows guest sends frames; all of them arrive, whoever runs when."""
    world = x.world_back(vif=Hasty)
    frame = b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(46)
    left = [frame] * FRAMES

    def send() -> None:
        world.net.send(left.pop())
        if left:
            app.wake()

    app = world.guest.created.domain.task("app", send)
    app.wake()
    x.run()
    assert len(world.vif.frames) == FRAMES, f"{len(world.vif.frames)} of {FRAMES} frames arrived"


def main() -> None:
    result = explore(scenario, seed=1, directory="found")
    print(*result.lines(), sep="\n")
    assert result.run is not None
    assert len(result.run.taken) == 1


if __name__ == "__main__":
    main()
