"""Strategies make what they say, and machines find what is wrong with what they are given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import sizeof
from xenpv.abi.xs import XS
from xenpv.back import netback
from xenpv.back.blkserver import BlkServer
from xenpv.errors import LocalProtocolError
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Platform
from xenpv.store.tree import Tree
from xenpv.testing import fuzz_one, machines, strategies, world_back, world_raw
from xenpv.testing.commands import COMMANDS
from xenpv.testing.linux_blk import BlkError
from xenpv.testing.overlays.netjudge import TX, TxJudge
from xenpv.testing.world import World
from xenpv.vbd.srb import SrbStatus

FEW = settings(max_examples=40, deadline=None)
QUIET = settings(
    max_examples=8,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@given(strategies.overlays(max_size=40))
@settings(max_examples=10, deadline=None)
def test_overlays_are_examples(data: bytes) -> None:
    fuzz_one(data)


def test_an_overlay_of_no_target_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="no target is called 'x'"):
        strategies.overlays("x")


@given(strategies.slots("blkif_request"), strategies.indices(7), strategies.store_values())
@FEW
def test_raw_ones_have_the_size_of_what_they_are_laid_over(slot, index, value) -> None:
    assert len(slot) == 112
    assert 0 <= index < 1 << 32
    assert "\0" not in value


@pytest.mark.parametrize(
    "wanted", [7, 8, 6, 7 + 32, 7 + 33, (7 - 32) & 0xFFFFFFFF, 7 + (1 << 31), 0xFFFFFFFF]
)
def test_indices_come_to_the_bounds_of_a_ring(wanted) -> None:
    assert find(strategies.indices(7), lambda one: one == wanted) == wanted


@given(strategies.blk_requests([9, 10], sectors=128))
@FEW
def test_requests_are_well_formed(request) -> None:
    assert len(request.emit()) == sizeof("blkif_request")
    assert len(request.emit("_x86_32")) == sizeof("blkif_request_x86_32")
    assert request.emit()[0] == request.operation
    assert all(ref in (9, 10) and first <= last < 8 for ref, first, last in request.segments)
    covered = sum(last - first + 1 for _, first, last in request.segments) + request.count
    assert request.sector + covered <= 128


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_blkback_answers_every_well_formed_request_okay(data) -> None:
    with world_raw() as world:
        ref = world.guest.grant(world.guest.page())
        some = data.draw(st.lists(strategies.blk_requests([ref]), max_size=4))
        world.vbd.sring.push(b"".join(one.emit() for one in some), len(some))
        world.vbd.notify()
        world.run()
        answers = [(raw[:8], raw[10:12]) for raw in world.vbd.sring.take()]
        assert answers == [(one.id.to_bytes(8, "little"), b"\0\0") for one in some]


@given(strategies.net_packets([4, 5]))
@FEW
def test_packets_say_their_size_in_the_first_slot(packet) -> None:
    slots = packet.emit()
    assert {len(one) for one in slots} == {12}
    assert TX.unpack(slots[0])[4] == sum(size for _, _, size in packet.fragments)
    more = [TX.unpack(one)[2] & lib.NETTXF_more_data for one in slots]
    assert [bool(one) for one in more] == [True] * (len(slots) - 1) + [False]


@given(strategies.net_packets([4], hostile=True))
@FEW
def test_hostile_packets_are_whole_slots_and_extras_come_second(packet) -> None:
    slots = packet.emit()
    assert len(slots) == len(packet.fragments) + len(packet.extras)
    assert bool(TX.unpack(slots[0])[2] & lib.NETTXF_extra_info) == bool(packet.extras)
    for at, extra in enumerate(packet.extras, 1):
        assert slots[at][:8] == bytes((extra.type, at < len(packet.extras))) + extra.body
    TxJudge({}, {}).answers(slots)  # any packet can be judged


@given(strategies.extras())
@FEW
def test_extras_are_of_the_types_that_there_are(extra) -> None:
    assert 1 <= extra.type <= 4
    assert len(extra.body) == 6
    assert extra.type != 1 or (extra.body[:2] != b"\0\0" and extra.body[2] in (1, 2))


@given(strategies.blk_features(), strategies.net_features())
@FEW
def test_features_are_keys_with_numbers(blk, net) -> None:
    assert all(value.isdecimal() for value in (*blk.values(), *net.values()))


def test_srbs_end_well_on_a_disk_that_answers() -> None:
    with world_back(kinds=("vbd",)) as world:

        @given(st.lists(strategies.srbs(sectors=2048), max_size=4))
        @settings(max_examples=10, deadline=None, database=None)
        def check(some: list[strategies.ScsiCommand]) -> None:
            pending = [one.start(world.disk) for one in some]
            world.run()
            assert [one.srb_status for one in pending] == [SrbStatus.SUCCESS] * len(some)

        check()


def test_hostile_srbs_end_too() -> None:
    with world_back(kinds=("vbd",)) as world:

        @given(strategies.srbs(hostile=True))
        @settings(max_examples=20, deadline=None, database=None)
        def check(one: strategies.ScsiCommand) -> None:
            pending = one.start(world.disk)
            world.run()
            assert pending.is_complete

        check()


@given(strategies.store_operations())
@FEW
def test_store_operations_are_requests(operation) -> None:
    assert operation.payload.startswith(operation.path.encode() + b"\0")
    assert operation.op is XS.WRITE or not operation.value


@given(strategies.lifecycle_steps())
@FEW
def test_lifecycle_steps_are_commands(step) -> None:
    assert step.command in COMMANDS


def test_lifecycle_steps_may_be_fewer() -> None:
    assert find(strategies.lifecycle_steps(["pause"]), lambda one: True).command == "pause"


def test_requests_shrink_to_words() -> None:
    found = find(
        strategies.blk_requests([9], hostile=True), lambda one: one.operation == BLKIF_OP.DISCARD
    )
    assert str(found) == (
        "BlkRequest(operation=<BLKIF_OP.DISCARD: 5>, id=0, sector=0, segments=(), count=0, handle=0)"
    )


# machines

MACHINES: dict[str, type[Any]] = {
    "blk": machines.BlkMachine,
    "net": machines.NetMachine,
    "store": machines.StoreMachine,
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_holds_for_ours(name: str) -> None:
    run_state_machine_as_test(MACHINES[name], settings=QUIET)


def test_a_life_cycle_machine_holds_for_ours() -> None:
    class Few(machines.LifecycleMachine):
        commands = ("create", "pause", "unpause", "destroy")

    few = settings(QUIET, max_examples=1, stateful_step_count=4)
    run_state_machine_as_test(Few, settings=few)


def test_requests_of_a_blk_machine_run_together_unless_their_sectors_meet() -> None:
    machine = machines.BlkMachine()
    machine.write(0, b"ab")
    machine.write(8, b"c")
    machine.read(2, 2)
    machine.flush()
    assert [one.started[0].status for one in machine.under_way] == [None] * 4
    machine.read(1, 1)  # of what is being written
    assert [one.sector for one in machine.under_way] == [1]
    machine.read(1, 2)
    assert len(machine.under_way) == 2
    machine.write(2, b"d")
    assert [one.operation for one in machine.under_way] == [BLKIF_OP.WRITE]
    machine.read(0, 1)
    machine.settle()
    assert not machine.under_way
    machine.teardown()


@pytest.mark.parametrize(("machine", "kind"), [("blk", "vbd"), ("net", "vif")])
def test_the_world_of_a_machine_has_its_device_only(machine: str, kind: str) -> None:
    with MACHINES[machine]().world as world:
        assert [one.kind for one in world.platform.backends.devices.values()] == [kind]
        assert list(world.platform.xenstored.nodes[b"/local/domain/1/device"].children) == [
            kind.encode()
        ]


def test_a_blk_machine_has_so_many_requests_under_way() -> None:
    machine = machines.BlkMachine()
    for _ in range(17):
        machine.flush()
    assert len(machine.under_way) == 1
    machine.teardown()


def test_a_blk_machine_tells_of_a_request_that_is_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = machines.BlkMachine()
    monkeypatch.setattr(machine.world, "run", lambda: 0)
    machine.write(0, b"a")
    with pytest.raises(BlkError, match="WRITE of 1 at 0: no answer"):
        machine.settle()
    machine.world.close()


class GuestWorld(World):
    """A Windows guest's disk on blkback."""

    def __init__(self) -> None:
        self.platform = Platform()
        image = MemoryImage(bytearray(64 << 10))
        guest = self.platform.create(name="guest", disks=[Disk(image)])
        guest.start()
        self.disk = guest.disks[0]


class AtOnce(machines.BlkMachine):
    """A disk that is read and written, and knows no requests."""

    def make(self) -> Any:
        return GuestWorld()

    def start(self, operation: BLKIF_OP, sector: int, count: int, data: bytes) -> Any:
        disk: Any = self.world.disk
        if operation is BLKIF_OP.READ:
            return disk.read(sector, count)
        return disk.write(sector, data) if data else disk.flush()

    def answer(self, started: Any) -> bytes:
        return started or b""


def test_a_blk_machine_may_have_a_disk_that_runs_by_itself() -> None:
    run_state_machine_as_test(AtOnce, settings=settings(QUIET, max_examples=3))


def lost(_original: Any) -> Any:
    return lambda *_args: 0


def shifted(original: Any) -> Any:
    """Of requests in flight together a WRITE lands a sector later."""

    def begin(server: Any, group: Any) -> Any:
        for request in group if server.ring.in_flight > 1 else ():
            request.sector += request.operation == BLKIF_OP.WRITE
        return original(server, group)

    return begin


def cut(original: Any) -> Any:
    return lambda tree, node, value: original(tree, node, value[:2])


WRONG = {
    "blk": (MemoryImage, "write_from", lost),
    "blk-together": (BlkServer, "_begin", shifted),
    "net": (netback.Netback, "transmit", lost),
    "store": (Tree, "write", cut),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_machine_finds_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, attribute, change = WRONG[name]
    monkeypatch.setattr(home, attribute, change(getattr(home, attribute)))
    # Shrinking it would take most of the time.
    more = settings(QUIET, max_examples=60, stateful_step_count=40, phases=[Phase.generate])
    with pytest.raises((AssertionError, BlkError)):
        run_state_machine_as_test(MACHINES[name.partition("-")[0]], settings=more)
