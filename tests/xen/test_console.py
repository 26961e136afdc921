"""Xen's console: the debug port of guests, and the keys that are pressed on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import VIRQ
from xenpv.xen.console import LINES_MAX, XenConsole

# What is written, in parts; the lines that come of it (DOMAIN_PBUF_SIZE is 200 with its NUL).
WRITES = [
    ("a line", [b"one\n"], ["one"]),
    ("no line yet", [b"one"], []),
    ("in parts", [b"o", b"n", b"e\ntw", b"o\n"], ["one", "two"]),
    ("several at once", [b"one\n\ntwo\n"], ["one", "", "two"]),
    ("tabs stay, the rest of control characters goes", [b"a\tb\r\x07\x00c\n"], ["a\tbc"]),
    ("no 8-bit characters", ["grün\n".encode()], ["grn"]),
    ("198 characters", [b"x" * 198 + b"\n"], ["x" * 198]),
    ("199 fill the buffer, the LF ends an empty line", [b"x" * 199 + b"\n"], ["x" * 199, ""]),
    ("250 are two lines", [b"x" * 250 + b"\n"], ["x" * 199, "x" * 51]),
    ("500 without an end are two lines so far", [b"x" * 500], ["x" * 199] * 2),
]


@pytest.mark.parametrize(
    ("parts", "lines"), [row[1:] for row in WRITES], ids=[row[0] for row in WRITES]
)
def test_a_guest_s_writes_become_lines(parts: list[bytes], lines: list[str]) -> None:
    console = XenConsole()
    for part in parts:
        console.write(3, part)
    assert list(console.lines) == [(3, line) for line in lines]
    assert console.of(3) == "".join(f"{line}\n" for line in lines)
    assert console.written == len(lines)


@given(st.binary(max_size=900), st.lists(st.integers(0, 900), max_size=5))
def test_however_the_bytes_are_cut_the_lines_are_the_same(data: bytes, cuts: list[int]) -> None:
    whole, parts = XenConsole(), XenConsole()
    whole.write(1, data)
    ends = sorted(min(cut, len(data)) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        parts.write(1, data[start:end])
    assert whole.lines == parts.lines


def test_two_guests_do_not_mix() -> None:
    console = XenConsole()
    console.write(1, b"on")
    console.write(2, b"two\n")
    console.printk("own")
    console.write(1, b"e\n")
    assert console.text == "(d2) two\n(XEN) own\n(d1) one\n"
    assert console.of(1) == "one\n"
    assert console.since(1) == ["own"]


def test_a_domain_s_begun_line_ends_with_it() -> None:
    console = XenConsole()
    console.write(1, b"half a li")
    console.forget(1)
    console.write(1, b"new\n")
    assert console.of(1) == "new\n"


def test_the_oldest_lines_go_first() -> None:
    console = XenConsole()
    for number in range(LINES_MAX + 3):
        console.printk(str(number))
    assert len(console.lines) == LINES_MAX
    assert console.lines[0] == (-1, "3")
    assert console.since(LINES_MAX + 1) == [str(LINES_MAX + 1), str(LINES_MAX + 2)]
    assert len(console.since(0)) == LINES_MAX


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def test_q_raises_virq_debug_on_each_vcpu_that_bound_it(world: World) -> None:
    two = world.hypervisor.create_domain(vcpus=2, max_pages=64)
    two.populate(16)
    two.start_vcpus()
    two.unpause()
    port = two.evtchn.bind_virq(VIRQ.DEBUG, 1)
    world.dom0.domctl.debug_keys("q")
    assert lib.evtchn_is_pending(two.kernel, port) == 1
    text = world.hypervisor.console.text
    assert "(XEN) 'q' pressed -> dump domain (and guest debug) info\n" in text
    assert "(XEN) General information for domain 2:\n" in text
    assert "(XEN) Notifying guest 0:0 (virq 1, port 0)\n" in text
    assert "(XEN) Notifying guest 2:0 (virq 1, port 0)\n" in text
    assert f"(XEN) Notifying guest 2:1 (virq 1, port {port})\n" in text


def test_a_key_without_a_handler_does_nothing_and_h_lists_the_others(world: World) -> None:
    world.dom0.domctl.debug_keys("~h")
    assert world.hypervisor.console.text == (
        "(XEN) 'h' pressed -> show this message\n"
        "(XEN)  key 'h' (ascii '68') => show this message\n"
        "(XEN)  key 'q' (ascii '71') => dump domain (and guest debug) info\n"
    )


def test_q_tells_of_dead_domains_that_somebody_holds(world: World) -> None:
    """Their pages are not looked at."""
    one = world.hypervisor.create_domain(vcpus=1, max_pages=64)
    model = world.hypervisor.create_domain(vcpus=1, max_pages=64)
    world.dom0.domctl.set_target(model.domid, one.domid)
    world.hypervisor.destroy_domain(one)
    world.dom0.domctl.debug_keys("q")
    assert "(XEN)     dying=1 pause_count=1\n" in world.hypervisor.console.text
