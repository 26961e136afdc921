"""What a guest leaves on its disk when it crashes, read by a reader that is not the writer."""

from __future__ import annotations

from tests.vbd.crash.dumps import FILE_SIZE, PAGES, Crashing, DumpReader, differing, made, memory
from xenpv.vbd.crash.stack import Stage


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
