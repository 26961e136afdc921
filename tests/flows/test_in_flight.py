"""Requests in flight at what a toolstack does: each ends once, as the original ends it.

The backends are held, so that what was submitted is where the row says when the event comes:
on the ring, in the driver's queue behind a full ring, or pending in it. `held` rows hold them
through the event as well, as a host that is stuck would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.back.blkback import Blkback
from xenpv.back.netback import Netback
from xenpv.bus.devicetree import Irp
from xenpv.errors import LocalProtocolError
from xenpv.host.network import Frame
from xenpv.testing.checkers import check_all
from xenpv.vbd.disk import Disk as GuestDisk
from xenpv.vbd.pending import Pending
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus
from xenpv.xen.loop import Task

SECTORS = 4096
OLD = b"\xa5"
XVDA = 51712


@attrs.define(eq=False)
class Net:
    """Whoever hears of the frames: how each ended, in order."""

    ended: dict[int, list[int]] = attrs.Factory(dict)

    def sent(self, completions: Sequence[tuple[int, ...]]) -> None:
        for number, status, *_ in completions:
            self.ended.setdefault(number, []).append(status)


@attrs.define(eq=False)
class Scene:
    xen: Platform
    guest: Guest
    image: MemoryImage
    net: Net
    held: list[Task] = attrs.Factory(list)
    srbs: dict[str, Srb] = attrs.Factory(dict)
    commands: dict[str, Pending] = attrs.Factory(dict)
    frames: dict[str, int] = attrs.Factory(dict)

    @property
    def disk(self) -> GuestDisk:
        return self.guest.disks[0]

    def back(self, kind: str, devid: int) -> Any:
        device = self.xen.backends.device(kind, self.guest.domid, devid)
        return None if device is None else device.driver

    def hold(self) -> None:
        """The backends' threads stand still; what xenbus tells them they do."""
        blk, net = self.back("vbd", XVDA), self.back("vif", 0)
        assert isinstance(blk, Blkback)
        assert isinstance(net, Netback)
        self.held = [queue.task for queue in blk.queues]
        for queue in net.queues:
            self.held += [queue._tx_task, queue._rx_task, queue._both_task]
        for task in self.held:
            task.hold()

    def let_go(self) -> None:
        """Those that are still there go on."""
        for task in self.held:
            if task in self.xen.dom0.tasks:
                task.release()
        self.held.clear()

    def submit(self) -> None:
        """One request in each place. Writes are of sectors of their own, from b"\\x01" on."""
        disk = self.disk
        self.commands["write on the ring"] = disk.start_write(8, b"\x01" * 4096)
        self.commands["read on the ring"] = disk.start_read(0, 8)
        self.commands["flush on the ring"] = disk.start_flush()
        self.xen.run()
        slots = sum(ring.front.free for ring in disk.target.frontend.rings if ring.front)
        for _ in range(slots):
            disk.start_read(0, 8)
        self.commands["write in the queue"] = disk.start_write(16, b"\x02" * 4096)
        self.commands["read in the queue"] = disk.start_read(0, 8)
        for name, function in (("FLUSH", SrbFunction.FLUSH), ("SHUTDOWN", SrbFunction.SHUTDOWN)):
            self.srbs[name] = Srb(function=function)
            disk.target.submit(self.srbs[name])
        nic = self.guest.nets[0]
        nic.sender = self.net
        frame = b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(100)
        self.frames["frame on the ring"] = nic.send(frame)
        self.xen.run()
        nic.send_many([frame] * 300)
        self.frames["frame in the queue"] = nic.send(frame)
        self.xen.run()

    def ends(self) -> dict[str, str]:
        """How each ended; `pending` if it did not."""
        found = {name: one.srb_status.name for name, one in self.commands.items()}
        found |= {name: one.srb_status.name for name, one in self.srbs.items()}
        names = {2: "OK", 3: "DROPPED", 4: "ERROR"}
        for name, number in self.frames.items():
            ended = self.net.ended.get(number, [])
            assert len(ended) < 2, f"{name} ended {len(ended)} times"
            found[name] = names[ended[0]] if ended else "PENDING"
        return found


def scene(personality: str, seed: int = 11) -> Scene:
    xen = Platform(seed=seed)
    image = MemoryImage(bytearray(OLD * 512 * SECTORS))
    guest = xen.create(name="g", disks=[Disk(image)], vifs=[Vif()], personality=personality).start()
    return Scene(xen, guest, image, Net())


@pytest.fixture(params=["windows", "linux"])
def s(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = scene(request.param)
    yield made
    made.xen.close()


# events


def resumed(result: int) -> Callable[[Scene], None]:
    def event(s: Scene) -> None:
        bus, domctl, domid = s.guest.bus, s.xen.dom0.domctl, s.guest.domid
        assert bus is not None
        bus.suspend.trigger()
        s.xen.run()
        s.let_go()
        domctl.setvcpucontext(domid, 0, rax=result)
        domctl.resumedomain(domid)
        s.xen.run()

    return event


def asleep(*, s4: bool = False, held: bool = False) -> Callable[[Scene], None]:
    def event(s: Scene) -> None:
        if not held:
            s.let_go()
        assert s.guest.bus is not None
        s.guest.bus.sleep(s4=s4)
        s.xen.run()
        s.let_go()

    return event


def slept(s: Scene) -> None:
    asleep(held=True)(s)
    assert s.guest.bus is not None
    s.guest.bus.wake()
    s.xen.run()


def detached(mode: str) -> Callable[[Scene], None]:
    """With stuck backends: otherwise who is first, backend or frontend, decides."""

    def event(s: Scene) -> None:
        for kind, devid in (("vbd", XVDA), ("vif", 0)):
            s.guest.detach(kind, devid, mode=mode)

    return event


def shut_down(s: Scene) -> None:
    s.guest.shutdown()


def rebooted(s: Scene) -> None:
    s.guest.reboot()


def destroyed(s: Scene) -> None:
    s.guest.destroy()


def paused(s: Scene) -> None:
    s.guest.pause()
    s.let_go()
    s.xen.advance(5)
    s.guest.unpause()
    s.xen.run()


def backend_rebound(s: Scene) -> None:
    for kind, devid in (("vbd", XVDA), ("vif", 0)):
        s.xen.backends.rebind(kind, s.guest.domid, devid)
    s.xen.run()


def backend_closing(s: Scene) -> None:
    """`online` stays 1: no detach, only a backend that wants to be rid of its frontend."""
    for kind, devid in (("vbd", XVDA), ("vif", 0)):
        s.xen.toolstack.xs.write(
            f"/local/domain/0/backend/{kind}/{s.guest.domid}/{devid}/state", "5"
        )
    s.xen.run()
    s.let_go()
    s.xen.run()


def backend_deleted(s: Scene) -> None:
    for kind, devid in (("vbd", XVDA), ("vif", 0)):
        s.xen.toolstack.xs.rm(f"/local/domain/0/backend/{kind}/{s.guest.domid}/{devid}")
    s.xen.advance(120)


def backend_deleted_then_reset(s: Scene) -> None:
    backend_deleted(s)
    device_reset(s)


def device_reset(s: Scene) -> None:
    """What StorPort does to a device that does not answer for 60 s."""
    reset = Srb(function=SrbFunction.RESET_DEVICE)
    s.disk.target.submit(reset)
    s.xen.run()
    assert reset.srb_status is SrbStatus.SUCCESS
    s.let_go()
    s.xen.run()


ON_THE_RING = ("write on the ring", "read on the ring", "flush on the ring")
KINDS = (
    *ON_THE_RING, "write in the queue", "read in the queue", "FLUSH", "SHUTDOWN",
    "frame on the ring", "frame in the queue",
)  # fmt: skip
# In KINDS' order: of SRBs S SUCCESS, E ERROR (and SCSI status TASK ABORTED), P pending; of
# frames O OK, D DROPPED, P pending. Windows' and Linux' drivers where they differ.
ENDS: list[tuple[str, Callable[[Scene], None], str, str]] = [
    # what was on the ring is an error of XenVbd, and done again by blkfront; tx is faked DROPPED
    ("resumed as a new domain", resumed(0), "EEE SS SS D O", "SSS SS SS D O"),
    ("suspend cancelled", resumed(1), "SSS SS SS O O", "SSS SS SS O O"),
    ("suspend failed", resumed(-22), "SSS SS SS O O", "SSS SS SS O O"),
    ("paused", paused, "SSS SS SS O O", "SSS SS SS O O"),
    # a backend that answers gets 100 ms; SRBs in the queue run after the sleep
    ("asleep in S3", asleep(), "SSS PP PP O D", "SSS PP PP O D"),
    ("asleep in S3, backends stuck", asleep(held=True), "EEE PP PP D D", "EEE PP PP D D"),
    ("awake after S3", slept, "EEE SS SS D D", "EEE SS SS D D"),
    ("asleep in S4", asleep(s4=True), "SSS PP PP O D", "SSS PP PP O D"),
    ("detached", detached("safe"), "EEE EE SS D D", "EEE EE SS D D"),
    ("detached by force", detached("forced"), "EEE EE SS D D", "EEE EE SS D D"),
    ("shut down", shut_down, "EEE EE SS D D", "EEE EE SS D D"),
    ("rebooted", rebooted, "EEE EE SS D D", "EEE EE SS D D"),
    # nobody is left to be told
    ("destroyed", destroyed, "PPP PP PP P P", "PPP PP PP P P"),
    ("backend driver rebound", backend_rebound, "SSS SS SS O O", "SSS SS SS O O"),
    # XenVbd and XenVif look at `online`; Linux' frontends follow their backend
    ("backend at Closing", backend_closing, "SSS SS SS O O", "EEE EE SS D D"),
    # XenVbd waits for ever: its class driver's timeout resets the device
    ("backend deleted", backend_deleted, "PPP PP PP D D", "PPP PP PP D D"),
    ("device reset", device_reset, "EEE SS SS O O", "EEE SS SS O O"),
    ("reset without a backend", backend_deleted_then_reset, "EEE PP PP D D", "EEE PP PP D D"),
]
LETTERS = {"SUCCESS": "S", "ERROR": "E", "PENDING": "P", "OK": "O", "DROPPED": "D"}


@pytest.mark.parametrize(
    ("event", "windows", "linux"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS]
)
def test_each_request_ends_once_as_the_original_ends_it(
    s: Scene, event: Callable[[Scene], None], windows: str, linux: str
) -> None:
    personality = s.guest.created.config.personality.value
    expected = (windows if personality == "windows" else linux).replace(" ", "")
    s.hold()
    s.submit()
    assert set(s.ends().values()) == {"PENDING"}
    event(s)
    ends = s.ends()
    assert "".join(LETTERS[ends[kind]] for kind in KINDS) == expected
    for name, command in s.commands.items():
        done = command.srbs[0]
        assert command.completions == (done.srb_status is not SrbStatus.PENDING)
        if done.srb_status is SrbStatus.ERROR:
            assert done.scsi_status == 0x40, name
    # What was acknowledged is on the disk; of what was not, all or nothing.
    for name, lba, byte in (("write on the ring", 8, b"\x01"), ("write in the queue", 16, b"\x02")):
        found = bytes(s.image.buffer[512 * lba : 512 * (lba + 8)])
        allowed = (byte,) if ends[name] == "SUCCESS" else (byte, OLD)
        assert found in [one * 4096 for one in allowed], name
    everything = bytes(s.image.buffer[: 512 * 8]) + bytes(s.image.buffer[512 * 24 :])
    assert everything == OLD * len(everything)


def test_after_an_end_by_force_the_callers_command_says_that_nobody_will_answer(s: Scene) -> None:
    s.hold()
    s.submit()
    s.guest.destroy()
    with pytest.raises(LocalProtocolError, match="is not complete"):
        s.commands["read on the ring"].result()


# what a ring still names


def test_a_request_given_up_never_moves_the_data_of_another(s: Scene) -> None:
    """After a reset the stuck backend finds it on the ring: its references must be nobody's."""
    s.hold()
    first = s.disk.start_write(8, b"\x01" * 4096)
    s.xen.run()
    device_reset_while_stuck(s)
    assert first.srb_status is SrbStatus.ERROR
    second = s.disk.start_write(16, b"\x02" * 4096)
    s.xen.run()
    s.let_go()
    s.xen.run()
    assert second.result() == b""
    assert bytes(s.image.buffer[512 * 8 : 512 * 16]) in (OLD * 4096, b"\x01" * 4096)
    assert bytes(s.image.buffer[512 * 16 : 512 * 24]) == b"\x02" * 4096
    assert s.disk.target.frontend.rings[0].abandoned == {}
    check_all(s.xen)


def device_reset_while_stuck(s: Scene) -> None:
    reset = Srb(function=SrbFunction.RESET_DEVICE)
    s.disk.target.submit(reset)
    s.xen.run()
    assert reset.srb_status is SrbStatus.SUCCESS


@attrs.define(eq=False)
class Granting:
    """A driver that grants pages of its own to dom0 as soon as it has resumed."""

    s: Scene
    pfns: list[int] = attrs.Factory(list)

    def late(self) -> None:
        bus = self.s.guest.bus
        assert bus is not None
        for _ in range(600):
            pfn = bus.domain.pages.alloc()
            bus.domain.write(pfn, 0, b"\xee" * 4096)
            bus.gnttab.permit_foreign_access(0, pfn)
            self.pfns.append(pfn)

    @property
    def is_untouched(self) -> bool:
        domain = self.s.guest.created.domain
        return all(domain.read(pfn, 0, 4096) == b"\xee" * 4096 for pfn in self.pfns)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_the_old_backend_finds_no_pages_of_others_after_a_resume(
    personality: str, seed: int
) -> None:
    s = scene(personality, seed)
    with s.xen:
        assert s.guest.bus is not None
        granting = Granting(s)
        s.guest.bus.suspend.register(2, granting.late)
        s.hold()
        writes = [s.disk.start_write(8 * n, b"\x01" * 4096) for n in range(20)]
        reads = [s.disk.start_read(1000, 8) for _ in range(10)]
        nic = s.guest.nets[0]
        nic.send_many([b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(1000)] * 50)
        s.xen.run()
        bridge = s.xen.bridge("xenbr0")
        s.back("vif", 0).receive([Frame(data=b"\xff" * 12 + b"\x88\xb5" + bytes(1000))] * 10)
        resumed(0)(s)
        assert all(command.is_complete for command in [*writes, *reads])
        assert granting.is_untouched
        assert not any(b"\xee" * 8 in frame for frame in bridge.frames)
        image = bytes(s.image.buffer)
        assert b"\xee" not in image
        for n, write in enumerate(writes):
            found = image[4096 * n : 4096 * (n + 1)]
            assert found in (OLD * 4096, b"\x01" * 4096)
            assert found == b"\x01" * 4096 or write.srb_status is SrbStatus.ERROR


@pytest.mark.parametrize("function", [SrbFunction.RESET_DEVICE, SrbFunction.FLUSH])
def test_a_reset_or_flush_that_a_suspend_finds_ends_after_it(
    s: Scene, function: SrbFunction
) -> None:
    s.hold()
    write = s.disk.start_write(8, b"\x01" * 4096)
    s.xen.run()
    srb = Srb(function=function)
    s.disk.target.submit(srb)
    resumed(0)(s)
    assert (write.is_complete, srb.srb_status) == (True, SrbStatus.SUCCESS)
    assert s.disk.read(0, 1) == OLD * 512


def test_a_disk_that_was_ejected_stays_so_over_a_resume(s: Scene) -> None:
    """Only its directory is there: the toolstack has not taken it away yet."""
    target = s.disk.target
    target.pnp.request(Irp.EJECT)
    s.xen.run()
    assert target.is_closed
    resumed(0)(s)
    assert (target.missing, target.is_closed, s.guest.disks) == (True, True, [])


def test_an_interface_that_was_closing_closes_after_a_resume(s: Scene) -> None:
    s.hold()
    nic = s.guest.nets[0]
    nic.sender = s.net
    number = nic.send(b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(100))
    s.xen.run()
    vif = s.guest._vif
    assert vif is not None
    vif.pdos[0].eject()
    resumed(0)(s)
    assert (vif.pdos, s.net.ended) == ({}, {number: [3]})
    assert s.back("vif", 0).queues == []
    assert s.guest.bus is not None
    assert s.guest.bus.gnttab.deferred == []
    check_all(s.xen)


def test_a_broken_interface_works_again_with_a_new_backend(s: Scene) -> None:
    vif = s.guest._vif
    assert vif is not None
    vif.pdos[0].frontend.break_off("it lied")
    assert not s.guest.nets[0].link_up
    resumed(0)(s)
    assert s.guest.nets[0].link_up


def test_pages_that_a_backend_keeps_after_the_device_went_come_back_when_it_lets_go(
    s: Scene,
) -> None:
    """S3 and a stop look for references that are held; the loss is told there."""
    bus = s.guest.bus
    assert bus is not None
    before = bus.domain.pages.free_pages, bus.gnttab.permitted
    dom0 = s.xen.dom0
    vif = s.guest._vif
    assert vif is not None
    queue = vif.pdos[0].frontend.queues[0]
    assert queue.receiver is not None
    hole = dom0.holes.alloc()
    handle = dom0.gnttab.map(s.guest.domid, queue.receiver.ref, hole)
    s.guest.detach("vif", 0)
    assert len(bus.gnttab.deferred) == 1
    assert bus.domain.pages.free_pages > before[0]
    dom0.gnttab.unmap(handle, hole)
    bus.gnttab.defer(())
    assert bus.gnttab.deferred == []
    assert bus.gnttab.permitted < before[1]


def test_the_page_says_what_the_table_says() -> None:
    text = (
        Path(__file__)
        .parents[2]
        .joinpath("docs/reference/lifecycle.md")
        .read_text(encoding="utf-8")
    )
    words = {"S": "done", "E": "ERROR", "P": "pending", "O": "sent", "D": "DROPPED"}
    for name, _, windows, linux in ENDS:
        cells = [name]
        for one, other in zip(windows.split(), linux.split(), strict=True):
            cells.append(words[one[0]])
            if one != other:
                cells[-1] += f"; {words[other[0]]}"
        assert f"| {' | '.join(cells)} |\n" in text


@pytest.mark.parametrize(
    ("personality", "on_the_ring"), [("windows", "ERROR"), ("linux", "SUCCESS")]
)
def test_what_is_in_flight_at_a_migration_ends_on_the_other_host(
    personality: str, on_the_ring: str
) -> None:
    """The first host's backend is stuck, and never sees it."""
    s = scene(personality)
    with s.xen, Platform(seed=4, loop=s.xen.loop) as there:
        slots = sum(ring.front.free for ring in s.disk.target.frontend.rings if ring.front)
        s.hold()
        writes = [s.disk.start_write(8 * n, bytes([n + 1]) * 4096) for n in range(slots + 20)]
        s.xen.run()
        moved = s.guest.migrate(there)
        s.xen.run()
        ended = [moved.counterpart(write) for write in writes]
        statuses = [write.srb_status.name for write in ended]
        assert statuses == [on_the_ring] * slots + ["SUCCESS"] * 20
        assert all(write.completions == 1 for write in ended)
        for n, status in enumerate(statuses):
            found = bytes(s.image.buffer[4096 * n : 4096 * (n + 1)])
            assert found == (bytes([n + 1]) if status == "SUCCESS" else OLD) * 4096
