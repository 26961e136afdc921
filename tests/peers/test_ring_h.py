"""The kernel's ring against Xen's own io/ring.h, command by command."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.peers import need
from tests.xen.conftest import NR_FRAMES, domain
from tests.xen.test_ring import Pair, pair, requests, responses
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

STARTS = (0, 0x7FFFFFF0, 0xFFFFFFE0, 0xFFFFFFFF)
RUNS = 40
STEPS = 250

Command = tuple[str, int]


@pytest.fixture(scope="module")
def ring_h(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = need("gcc", "gcc")
    need("/usr/include/xen/io/ring.h", "libxen-dev")
    program = tmp_path_factory.mktemp("ring_h") / "ring_h"
    source = Path(__file__).parent / "ring_h.c"
    subprocess.run([compiler, "-O2", "-Wall", "-o", program, source], check=True)
    return program


def commands(seed: int) -> list[Command]:
    chance = random.Random(seed)
    start = STARTS[seed % len(STARTS)]
    steps = [
        (chance.choice("ptrfbc"), chance.choice((0, 1, 1, 2, 5, 31, 32))) for _ in range(STEPS)
    ]
    return [("s", start), *steps]


class Ours:
    """The same commands on our two halves."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES)
        domain(self.hypervisor, 0)
        domain(self.hypervisor)
        self.pair: Pair = pair(self.hypervisor)
        self.next = self.answer = 0

    def run(self, command: str, number: int) -> str:
        front, back = self.pair.front, self.pair.back
        text = ""
        if command == "s":
            self.pair = pair(self.hypervisor, start=number)
        elif command == "p":
            count = min(number, front.free)
            # A push of nothing tests the event index all the same, but wants no notify.
            text = str(int(front.push(requests(*range(self.next, self.next + count)), count)))
            self.next += count
        elif command == "t":
            count, raw = back.take(number)
            ids = (int.from_bytes(raw[at : at + 8], "little") for at in range(0, count * 112, 112))
            text = "".join(f"{one}," for one in ids)
        elif command == "r":
            count = min(number, back.in_flight)
            answers = responses(*range(self.answer, self.answer + count))
            text = str(int(back.push(answers, count)))
            self.answer += count
        elif command == "f":
            count, raw = front.take()
            ids = (int.from_bytes(raw[at : at + 8], "little") for at in range(0, count * 16, 16))
            text = "".join(f"{one}," for one in ids)
        else:
            text = str(int((back if command == "b" else front).final_check()))
        words = (self.pair.guest.load32(self.pair.pfn, offset) for offset in (0, 4, 8, 12))
        return f"{text} {' '.join(map(str, words))}"


@pytest.mark.peers
def test_every_step_gives_what_ring_h_gives(ring_h: Path) -> None:
    for seed in range(RUNS):
        steps = commands(seed)
        feed = "".join(f"{command} {number}\n" for command, number in steps)
        theirs = subprocess.run(
            [ring_h], input=feed, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        ours = Ours()
        try:
            for step, (command, number) in enumerate(steps):
                assert ours.run(command, number) == theirs[step], (seed, step, command, number)
        finally:
            ours.hypervisor.close()
