"""Two platforms on one loop: one clock and one chooser, and nothing else in common."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.errors import LocalProtocolError
from xenpv.testing import AccessLog, Explorer, Schedule, check_all
from xenpv.vbd.srb import Srb, SrbFunction
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.trace import Event

READ_BLOCK_0 = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0))  # READ(10)

JOB = textwrap.dedent("""
    from tests.flows.test_two_machines import busy, pair

    here, there = pair(5)
    busy(here, 3), busy(there, 3)
    print(here.digest)
""")


def start(xen: Platform, seed: int) -> Guest:
    xen.respond("xenbr0")
    return xen.create(
        name="web",
        disks=[Disk(MemoryImage(bytes([seed]) * 65536))],
        vifs=[Vif()],
    ).start()


def pair(seed: int) -> tuple[Platform, Platform]:
    here = Platform(seed=seed)
    there = Platform(seed=seed, loop=here.loop)
    start(here, 1)
    start(there, 2)
    return here, there


def busy(xen: Platform, rounds: int) -> None:
    """Disk and network of its guest, and what it should read is what it reads."""
    guest = xen.guests[0]
    disk, net = guest.disks[0], guest.nets[0]
    for number in range(rounds):
        data = bytes([number + 1]) * 4096
        disk.write(8 * number, data)
        net.send(b"\xff" * 6 + net.mac + b"\x08\x06" + bytes(46))
        xen.run()
        assert disk.read(8 * number, 8) == data


def test_both_machines_have_a_domain_1_that_works() -> None:
    here, there = pair(7)
    with here, there:
        assert here.guests[0].domid == there.guests[0].domid == 1
        busy(here, 4)
        busy(there, 4)
        assert there.guests[0].disks[0].read(100, 1) == bytes([2]) * 512
        assert here.guests[0].disks[0].read(100, 1) == bytes([1]) * 512
        for xen in (here, there):
            check_all(xen)


def test_their_guests_have_different_macs_and_uuids() -> None:
    here, there = pair(7)
    with here, there:
        a, b = here.guests[0].created.config, there.guests[0].created.config
        assert (a.uuid, a.vifs[0].mac) != (b.uuid, b.vifs[0].mac)
        assert a.uuid != b.uuid
        assert a.vifs[0].mac != b.vifs[0].mac


@pytest.mark.parametrize("first", [0, 1])
def test_one_closes_and_the_other_goes_on(first: int) -> None:
    machines = pair(7)
    closing, staying = machines[first], machines[1 - first]
    # A request under way on both when one goes: what is due of the dead machine never runs.
    for xen in machines:
        guest = xen.guests[0]
        net = guest.nets[0]
        net.send(b"\xff" * 6 + net.mac + b"\x08\x06" + bytes(46))
        target = guest.disks[0].target
        target.submit(Srb(function=SrbFunction.EXECUTE_SCSI, cdb=READ_BLOCK_0, data=[]))
    assert {task.machine for task in staying.loop.ready} == {0, 1}
    closing.close()
    assert not any(task.machine == first for task in staying.loop.ready)
    busy(staying, 4)
    check_all(staying)
    staying.advance(120)
    staying.close()
    assert staying.loop.run() == 0
    assert not staying.loop.ready


def test_run_of_either_lets_both_go_on() -> None:
    here, there = pair(7)
    with here, there:
        ran: list[str] = []
        there.guests[0].created.domain.task("there", lambda: ran.append("there")).wake()
        here.guests[0].created.domain.task("here", lambda: ran.append("here")).wake()
        here.run()
        assert sorted(ran) == ["here", "there"]
        before = there.loop.now
        here.advance(2)
        assert there.loop.now == before + 2_000_000_000


def test_two_processes_give_one_digest_for_both() -> None:
    digests = []
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", JOB],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.strip())
    assert digests[0] == digests[1]


def test_records_of_the_second_machine_are_marked() -> None:
    loop = Loop()
    here, there = Hypervisor(loop), Hypervisor(loop)
    words = []
    for one in (here, there):
        domain = one.create_domain(1, max_pages=64)
        domain.unpause()
        domain.task("t", lambda: None).wake()
        domain.trace.note(1, "here")
        domain.trace.store_op(1, 2, 3, b"path", None)
        domain.evtchn.send(domain.evtchn.bind_interdomain(1, domain.evtchn.alloc_unbound(1)))
        domain.timer(domain.tasks[-1]).arm(1)
        loop.run()
        words.append(list(loop.trace.words))
    first, second = words[0], words[1][len(words[0]) :]
    # A draw is the loop's, of no machine.
    second = [word for word in second if word >> 56 != Event.DRAW]
    kinds = [word >> 56 & 0xF for word in first if word > 1 << 50]
    assert {Event.DELIVER, Event.SEND, Event.TIMER, Event.DOMAIN, Event.NOTE, Event.STORE} <= {
        *kinds
    }
    assert [word >> 60 for word in first if word > 1 << 50] == [0] * len(kinds)
    marks = [word >> 60 for word in second if word > 1 << 50]
    assert marks == [1] * len(marks)
    assert [note.machine for note in loop.trace.notes] == [0, 1]
    assert loop.trace.tail(2)[0].startswith("m1 d1 timer of task")
    for one in (here, there):
        one.close()


def test_a_loop_has_no_more_machines_than_a_record_can_name() -> None:
    loop = Loop()
    for _ in range(16):
        loop.join()
    with pytest.raises(LocalProtocolError, match="16 machines"):
        Platform(loop=loop)


def test_two_access_logs_on_one_loop_know_their_own_deliveries() -> None:
    here, there = pair(7)
    with here, there:
        with AccessLog(here) as ours, AccessLog(there) as theirs:
            here.guests[0].disks[0].read(0, 1)
            deliveries = [one.delivery for one in ours.entries()]
            assert deliveries[-1] > 1
            assert theirs.total == 0
        assert here.loop.scheduler is None
        assert ours.double_fetches() == theirs.double_fetches() == []


def test_an_explored_pair_may_run_domain_1_of_one_amid_domain_1_of_the_other() -> None:
    order: list[str] = []
    explorer = Explorer(Schedule.from_bytes(b""))
    here = explorer.platform(seed=7)
    there = explorer.platform(seed=7, loop=here.loop)
    pages = []
    for xen in (here, there):
        domain = xen.hypervisor.create_domain(1, max_pages=64)
        domain.populate(16)
        domain.unpause()
        pages.append(domain)
    targets: list[int] = []

    def first() -> None:
        order.append("first begins")
        pages[0].read(0x100, 0, 4)
        targets.append(len(explorer._interleaver.targets()))
        order.append("first ends")

    pages[0].task("first", first).wake()
    pages[1].task("second", lambda: order.append("second")).wake()
    explorer.run()
    explorer.close()
    assert order == ["first begins", "first ends", "second"]
    assert targets == [1]
