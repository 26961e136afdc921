# ruff: noqa: INP001 - a script, in no package
"""A Hypothesis state machine of a disk in ten lines: the kit's rules, and one of one's own.

python examples/state_machine.py
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from xenpv.testing import BlkWorld, world_blk
from xenpv.testing.machines import BlkMachine


class MyDisk(BlkMachine):
    def make(self) -> BlkWorld:
        return world_blk(persistent=True, order=1)

    @rule()
    def discard(self) -> None:
        self.settle()  # nothing is under way in these sectors
        self.world.disk.discard(0, 8)
        self.model[: 8 * 512] = bytes(8 * 512)


def main() -> None:
    quick = settings(
        max_examples=2, stateful_step_count=8, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(MyDisk, settings=quick)
    print("2 examples, nothing found")


if __name__ == "__main__":
    main()
