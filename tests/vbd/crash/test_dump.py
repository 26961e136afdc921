"""What a guest leaves on its disk when it crashes, read by a reader that is not the writer."""

from __future__ import annotations

import pytest

from tests.vbd.crash.dumps import (
    FILE_SIZE,
    MEMORY_MIB,
    PAGES,
    Crashing,
    DumpReader,
    differing,
    made,
    memory,
)
from xenpv import Disk, MemoryImage, Platform
from xenpv.vbd.crash import stack as crash_stack
from xenpv.vbd.crash.stack import Stage
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.units import LINUX, SPEC2024, SS2019, SectorUnits


def test_every_page_is_in_the_dump_as_it_was_at_the_crash() -> None:
    # Pending events of the 2-level ABI lie in no page of the guest's own: nothing changes.
    with made(fifo=False) as crashing:
        domain, stack = crashing.guest.created.domain, crashing.stack
        pfn = domain.pages.alloc(3)
        domain.write(pfn, 0, b"what the guest knew".ljust(3 * 4096, b"~"))
        before: dict[int, bytes] = {}
        begin = stack.begin

        def snapshot(code: int, parameters: tuple[int | str, ...], reason: int) -> bool:
            before.update(memory(domain, range(0x100, 0x100 + PAGES)))
            return begin(code, parameters, reason)

        stack.begin = snapshot  # type: ignore[method-assign]
        assert crashing.crash(1, 2, 3, 4) == 3
        crashing.check()
        pages = DumpReader(crashing.data).pages()
        assert pages[pfn][:19] == b"what the guest knew"
        assert pages[pfn + 2] == b"~" * 4096
        assert list(pages) == list(before)
        changed = [one for one in pages if pages[one] != before[one]]
        assert [one for one in changed if one not in stack.image.pages] == []


def test_the_header_says_what_the_dump_is(crashing: Crashing) -> None:
    crashing.crash(1, 2, 3, 0xFFFF_8000_0000_0004)
    dump = DumpReader(crashing.data)
    assert dump.signature == b"PAGEDU64"
    assert dump.field("II", 0x30) == (0x8664, 1)
    assert dump.field("I", 0x38) == (0xE2,)
    assert dump.field("4Q", 0x40) == (1, 2, 3, 0xFFFF_8000_0000_0004)
    assert dump.runs == [(0x100, PAGES)]
    assert dump.field("Q", 0x90) == (PAGES,)
    assert dump.field("I", 0xF98) == (1,)
    assert dump.field("Q", 0xFA0) == (FILE_SIZE,)


def test_the_toolstack_hears_of_the_crash_behind_the_dump(crashing: Crashing) -> None:
    domain = crashing.guest.created.domain
    seen: list[Stage] = []
    shutdown = domain.shutdown
    domain.shutdown = lambda reason: (seen.append(crashing.stage), shutdown(reason))  # type: ignore[method-assign,assignment,func-returns-value]
    assert crashing.crash() == 3
    assert seen == [Stage.DONE]
    assert (domain.is_shutdown, domain.shutdown_code) == (True, 3)


def test_a_crash_while_a_dump_is_written_is_no_second_dump(crashing: Crashing) -> None:
    assert crashing.guest.bus is not None
    crashing.guest.bus.crash.bugcheck(0xE2)
    assert not crashing.stack.begin(0xE2, (), 1)
    crashing.xen.run()
    assert not differing(crashing.stack, crashing.data)
    assert not crashing.stack.begin(0xE2, (), 1)


def test_without_a_dump_stack_the_domain_goes_down_at_once(crashing: Crashing) -> None:
    assert crashing.guest.bus is not None
    crashing.guest.bus.crash.dumper = None
    before = crashing.xen.loop.now
    assert crashing.crash() == 3
    assert crashing.xen.loop.now == before
    assert crashing.data == bytes(FILE_SIZE)


def test_two_runs_of_memory_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with made() as crashing:
        domain = crashing.guest.created.domain
        base = domain.pages.alloc(60)
        for pfn in range(base, base + 60):
            domain.write(pfn, 0, b"page %05x" % pfn)
        runs = [(base, 30), (base + 33, 23), (base + 58, 1)]
        monkeypatch.setattr(crash_stack, "memory_runs", lambda _domain: runs)
        assert crashing.crash() == 3
        assert crashing.stage is Stage.DONE
        dump = DumpReader(bytes(crashing.image.buffer))
        assert dump.runs == runs
        assert len(dump.pages()) == 54
        assert differing(crashing.stack, dump.data) == []


# what the disk is, and how it was connected


@pytest.mark.parametrize("profile", ["linux", "qemu", "tapdisk", "mirage"])
def test_every_backend_has_the_dump(profile: str) -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(12 << 20))
        disk = Disk(image, profile=profile)
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[disk])
        guest.set_crash_dump(0, lba=8)
        guest.start()
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")
        assert differing(stack, bytes(image.buffer[4096:])) == []


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("queues", [1, 4])
def test_a_ring_of_many_pages_and_queues_before_it_misleads_nobody(order: int, queues: int) -> None:
    parameters = Parameters(ring_page_order=order, queues=queues)
    with made(vbd=parameters, vcpus=4, dom0_vcpus=4) as crashing:
        home = f"/local/domain/{crashing.guest.domid}/device/vbd/51712"
        xs = crashing.xen.toolstack.ctx.xs
        assert xs.read(f"{home}/ring-page-order") == (str(order) if order else None)
        assert xs.read(f"{home}/multi-queue-num-queues") == str(queues)
        assert crashing.crash() == 3
        crashing.check()
        assert xs.read(f"{home}/ring-page-order") is None


@pytest.mark.parametrize("units", [SPEC2024, SS2019, LINUX])
def test_a_disk_of_4096_byte_sectors(units: SectorUnits) -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(12 << 20), sector_size=4096)
        disk = Disk(image, units=units.name)
        guest = xen.create(
            name="web", memory_mib=MEMORY_MIB, disks=[disk], vbd=Parameters(units=units)
        )
        guest.set_crash_dump(0, lba=3)
        guest.start()
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")
        assert differing(stack, bytes(image.buffer[3 * 4096 :])) == []


def test_pages_that_a_balloon_took_are_zero(crashing: Crashing) -> None:
    domain = crashing.guest.created.domain
    pfns = [domain.pages.alloc() for _ in range(40)]
    for pfn in pfns:
        domain.write(pfn, 0, b"before".ljust(4096, b"~"))
    taken = pfns[3:37:2]
    assert domain.memory.decrease_reservation(domain.DOMID_SELF, taken) == len(taken)
    crashing.crash()
    crashing.check()
    pages = DumpReader(crashing.data).pages()
    assert [pfn for pfn in taken if any(pages[pfn])] == []
    assert all(pages[pfn].startswith(b"before") for pfn in pfns if pfn not in taken)


def test_a_guest_whose_balloon_is_inflated() -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(32 << 20))
        guest = xen.create(name="web", memory_mib=24, disks=[Disk(image)]).start()
        guest.set_crash_dump(0)
        guest.set_memory(20)
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")
        assert differing(stack, bytes(image.buffer)) == []


def test_a_read_only_disk_has_no_dump() -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(12 << 20))
        disk = Disk(image, readonly=True)
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[disk])
        guest.set_crash_dump(0)
        guest.start()
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (
            Stage.FAILED,
            "write at sector 0: SRB status ERROR",
        )
        assert not any(image.buffer)


@pytest.mark.parametrize(("size", "lba", "fits"), [
    (FILE_SIZE, 0, True), (FILE_SIZE - 512, 0, False), (FILE_SIZE + 512, 1, True),
    (FILE_SIZE, 1, False), (FILE_SIZE, 1 << 40, False), (FILE_SIZE, (1 << 64) - 1, False),
])  # fmt: skip
def test_the_last_sector_is_used_and_no_more(size: int, lba: int, fits: bool) -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(size))
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[Disk(image)])
        guest.set_crash_dump(0, lba=lba)
        guest.start()
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        if fits:
            assert stack.stage is Stage.DONE
            assert differing(stack, bytes(image.buffer[lba * 512 :])) == []
        else:
            assert stack.stage is Stage.FAILED
            assert stack.failure.startswith(f"the disk has {max(0, size - lba * 512)} bytes from")
            assert not any(image.buffer)


def test_the_original_does_not_reach_the_last_sector() -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(FILE_SIZE))
        guest = xen.create(
            name="web",
            memory_mib=MEMORY_MIB,
            disks=[Disk(image)],
            vbd=Parameters(quirks=("crash-range",)),
        )
        guest.set_crash_dump(0)
        guest.start()
        guest.crash()
        assert guest.crash_dump is not None
        assert guest.crash_dump.failure.endswith("SRB status INVALID_REQUEST")


def test_a_disk_that_is_not_there_has_no_dump() -> None:
    with Platform(seed=5) as xen:
        guest = xen.create(name="web", memory_mib=MEMORY_MIB)
        guest.set_crash_dump(3)
        guest.start()
        assert guest.crash() == 3
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (
            Stage.FAILED,
            "device/vbd: ENOENT: DIRECTORY",
        )


def test_what_a_dump_failed_of_is_in_xens_log() -> None:
    with Platform(seed=5) as xen:
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[Disk(MemoryImage(bytes(512)))])
        guest.set_crash_dump(0)
        guest.start()
        guest.crash()
        assert guest.xen_log.splitlines()[-1] == (
            f"xencrsh|dump failed: the disk has 512 bytes from sector 0 on, the file {FILE_SIZE}"
        )


class Log:
    """An image that remembers what was done to it."""

    def __init__(self) -> None:
        self.disk = MemoryImage(bytearray(b"\xee" * (12 << 20)))
        self.size_bytes = self.disk.size_bytes
        self.sector_size = self.physical_sector_size = 512
        self.writable = True
        self.buffer = None
        self.done: list[tuple[str, int]] = []

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.disk.read_into(buffer, offset)

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self.done.append(("write", offset))
        self.disk.write_from(buffer, offset)

    def flush(self) -> None:
        self.done.append(("flush", 0))

    def discard(self, offset: int, length: int) -> bool:
        return self.disk.discard(offset, length)

    def close(self) -> None: ...


def test_a_dump_without_its_last_flush_has_no_header() -> None:
    """An old dump's header goes first, the new one comes last: a file that has one is whole."""
    with Platform(seed=5) as xen:
        image = Log()
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[Disk(image)])
        guest.set_crash_dump(0)
        guest.start()
        image.done.clear()
        guest.crash()
        assert guest.crash_dump is not None
        assert guest.crash_dump.stage is Stage.DONE
        order = [what for what, offset in image.done if what == "flush" or offset < 8192]
        assert order[0] == "write"
        assert [what for what in order if what == "flush"] == ["flush", "flush"]
        assert order[-1] == "flush"
        first = order.index("flush")
        assert set(order[first + 1 : -1]) == {"write"}
        sizes = [offset for what, offset in image.done if what == "write" and offset >= 8192]
        assert sizes == sorted(sizes)
