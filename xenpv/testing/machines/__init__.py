"""State machines of Hypothesis, made to be subclassed: rules that use a device, and a model of it.

    class MyDisk(BlkMachine):
        def make(self):                      # the world whose disk is under test
            return world_blk(image=mine)

    TestMyDisk = MyDisk.TestCase

Each begins with a fresh world, checks what it gets against the model at once, and every law of
the platform at the end. Rules that a subclass adds mix with those that are there.
"""

from __future__ import annotations

from xenpv.testing.machines.blk import BlkMachine
from xenpv.testing.machines.lifecycle import LifecycleMachine
from xenpv.testing.machines.net import NetMachine
from xenpv.testing.machines.store import StoreMachine

__all__ = ["BlkMachine", "LifecycleMachine", "NetMachine", "StoreMachine"]
