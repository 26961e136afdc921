"""`st.from_type` knows xenpv's types, whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import _xenpv_hypothesis
from xenpv.abi.blkif import BLKIF_OP
from xenpv.testing.commands import COMMANDS
from xenpv.testing.lifecycle import Step as LifecycleStep
from xenpv.testing.schedule import ACTIONS, Schedule
from xenpv.testing.strategies import (
    BlkRequest,
    Extra,
    NetPacket,
    ScsiCommand,
    StoreOperation,
    schedules,
)


def fresh(script):
    """What a script prints in an interpreter that has imported nothing of ours."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_entry_point_is_installed():
    (found,) = [one for one in entry_points(group="hypothesis") if one.name == "xenpv"]
    assert found.load() is _xenpv_hypothesis.register


def test_importing_hypothesis_imports_nothing_of_ours():
    script = (
        "import sys, hypothesis\n"
        "print(*(name for name in sys.modules if 'xenpv' in name and 'editable' not in name))"
    )
    assert fresh(script) == "_xenpv_hypothesis"


def test_the_plugin_alone_imports_nothing():
    script = (
        "import sys; before = set(sys.modules); import _xenpv_hypothesis\n"
        "_xenpv_hypothesis.register()\n"
        "print(*sorted(set(sys.modules) - before - {'collections.abc', 'typing', 're'}))"
    )
    assert set(fresh(script).split()) & {"hypothesis", "attr", "cffi", "xenpv"} == set()


KNOWN = """
from sys import modules
known = hypothesis.strategies._internal.types._global_type_lookup
print([name for module, name in TYPES if getattr(modules[module], name) not in known])
"""


@pytest.mark.parametrize("first", ["hypothesis", "ours"])
def test_the_types_are_known_whichever_is_imported_first(first):
    ours = [f"from {module} import {name}" for module, name in _xenpv_hypothesis.TYPES]
    lines = [*ours, "import hypothesis"] if first == "ours" else ["import hypothesis", *ours]
    table = "from _xenpv_hypothesis import TYPES"
    assert fresh("\n".join([*lines, table, KNOWN])) == "[]"


@pytest.mark.parametrize("kind", ["xenpv.testing.schedule", "xenpv.testing.lifecycle"])
def test_a_module_without_strategies_of_its_own_tells_hypothesis(kind):
    # No other module with types is imported, which would tell of all of them.
    names = [name for module, name in _xenpv_hypothesis.TYPES if module == kind]
    lines = [
        "import hypothesis",
        f"from {kind} import {names[0]}",
        f"TYPES = [({kind!r}, {names[0]!r})]",
    ]
    assert fresh("\n".join([*lines, KNOWN])) == "[]"


@pytest.mark.parametrize("kind", _xenpv_hypothesis.TYPES, ids=".".join)
def test_every_type_has_a_strategy_that_makes_it(kind):
    module, name = kind
    of = getattr(import_module(module), name)
    assert isinstance(find(st.from_type(of), lambda _: True), of)


@settings(max_examples=20)
@given(...)
def test_annotations_are_enough(schedule: Schedule, request: BlkRequest, step: LifecycleStep):
    assert isinstance(schedule, Schedule)
    assert len(request.emit()) == 112
    assert step.command in COMMANDS


@settings(max_examples=20)
@given(...)
def test_messages_can_be_laid_into_slots(packet: NetPacket, extra: Extra):
    assert all(len(slot) == 12 for slot in packet.emit())
    assert len(extra.body) == 6


@settings(max_examples=20)
@given(...)
def test_commands_and_operations_have_their_bytes(command: ScsiCommand, operation: StoreOperation):
    assert 1 <= len(command.cdb) <= 16
    assert operation.payload.startswith(operation.path.encode() + b"\0")


def test_requests_are_well_formed_or_hostile():
    def within(request):
        refs = [ref in _xenpv_hypothesis.REFS and 0 <= first <= last < 8
                for ref, first, last in request.segments]  # fmt: skip
        return request.operation is BLKIF_OP.READ and all(refs)

    requests = st.from_type(BlkRequest)
    assert within(find(requests, within))
    reads = requests.filter(lambda request: request.operation is BLKIF_OP.READ)
    assert not within(find(reads, lambda request: not within(request)))


def test_schedules_shrink_to_the_fewest_steps():
    found = find(schedules(steps=5), lambda schedule: len(schedule) >= 2)
    assert len(found) == 2
    assert {step.action for step in found.steps} <= set(ACTIONS)
    with pytest.raises(NoSuchExample):
        find(schedules(steps=2), lambda schedule: len(schedule) > 2)


def test_no_plugins_means_none():
    script = (
        "import os; os.environ['HYPOTHESIS_NO_PLUGINS'] = '1'; import sys, hypothesis\n"
        "print('_xenpv_hypothesis' in sys.modules)"
    )
    assert fresh(script) == "False"
