"""Hostile examples: how many overlays a second, and what a state machine costs beside Hypothesis.

Both in CPU time of this thread. An overlay is drawn bytes over a fresh raw world; the machine is
run by Hypothesis as a user's test would, and what its rules take is measured around them.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from time import thread_time_ns
from typing import Final

TARGETS: Final = ("blk-backend", "net-backend")
OVERLAY_BYTES: Final = 32  # at most: some six operations
SAMPLE: Final = 40
S: Final = 1e9  # in ns


def overlays() -> Generator[tuple[float, None], None, None]:
    """Examples a second, over the backends of a raw world that is made for each."""
    from xenpv.testing import overlay

    runs = [overlay.load(name).run for name in TARGETS]
    draw = random.Random(0)
    texts = [draw.randbytes(1 + int(draw.random() * OVERLAY_BYTES)) for _ in range(8 * SAMPLE)]
    for run in runs:
        run(texts[0])
    at = 0
    while True:
        start = thread_time_ns()
        for number in range(SAMPLE):
            runs[number % len(runs)](texts[(at + number) % len(texts)])
        yield SAMPLE * S / (thread_time_ns() - start), None
        at += SAMPLE
