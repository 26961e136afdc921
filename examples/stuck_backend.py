# ruff: noqa: INP001 - a script, in no package
"""A block backend of one's own that stops, and what the guest's dump says of it.

python examples/stuck_backend.py

The backend answers its first request and takes the second; from then on it hears no event. The
guest's driver waits for ever. `guest.dump()` asks for what `xl debug-keys q` makes a Windows
guest print, and shows who keeps whom waiting.
"""

from __future__ import annotations

from xenpv.errors import LocalProtocolError
from xenpv.testing import RawBlkBack, world_back


class Stuck(RawBlkBack):
    """It looks at its ring until it has taken two requests."""

    taken = 0

    def event(self) -> None:
        if self.taken == 2:
            return
        for request in self.sring.take():
            self.taken += 1
            if self.taken == 1:
                self.answer(request, 0)


def main() -> None:
    with world_back(seed=1, vbd=Stuck) as world:
        world.disk.read(0, 1)
        for _ in range(3):
            try:
                world.disk.read(0, 1)
            except LocalProtocolError as error:
                print(error)
        dump = world.guest.dump().splitlines()
        found = [line for line in dump if line.startswith("xenvbd|FRONTEND")]
        print(*found, sep="\n")
    ring = next(line for line in found if "not taken by the backend" in line)
    assert "2 not taken by the backend, 1 taken and not answered" in ring


if __name__ == "__main__":
    main()
