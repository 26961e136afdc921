"""HVM parameters: index x caller x set or get -> what Xen answers (spec xen-core 7.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.xen.conftest import domain as make_domain
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

EPERM, ENOENT, ESRCH, EEXIST, EINVAL, ENOSYS = 1, 2, 3, 17, 22, 38
SELF = 0x7FF0
OK = 0

GUEST_SETS = (0, 2, 15, 18, 19, 34, 36, 37)
GUEST_GETS = (*GUEST_SETS, 1, 17, 35)
GONE = (4, 13, 20, 21, 22, 23, 24, 25, 26, 30)
ONCE = (5, 6, 9, 32, 33, 38)
VALUE = {36: 8, 38: 1, 10: 3, 14: 3, 31: 5}  # where 7 is no value

SET = {
    "itself": {n: EINVAL if n in GONE else OK if n in GUEST_SETS else EPERM for n in range(39)},
    "control": {n: EINVAL if n in GONE else EEXIST if n == 35 else OK for n in range(39)},
    "device model": {n: EINVAL if n in GONE else EEXIST if n == 35 else OK for n in range(39)},
    "other": dict.fromkeys(range(39), EPERM),
}
GET = {
    "itself": {n: EINVAL if n in GONE else OK if n in GUEST_GETS else EPERM for n in range(39)},
    "control": {n: EINVAL if n in GONE else OK for n in range(39)},
    "device model": {n: EINVAL if n in GONE else OK for n in range(39)},
    "other": dict.fromkeys(range(39), EPERM),
}


@pytest.fixture
def callers(hypervisor: Hypervisor, dom0: Domain, guest: Domain) -> dict[str, Domain]:
    model, other = make_domain(hypervisor), make_domain(hypervisor)
    dom0.domctl.set_target(model.domid, guest.domid)
    return {"itself": guest, "control": dom0, "device model": model, "other": other}


def errno_of(call: Callable[[], Any]) -> int:
    try:
        call()
    except HypercallError as error:
        assert error.operation.startswith("HVMOP_")
        assert error.arguments
        return error.errno
    return OK


@pytest.mark.parametrize("caller", SET)
def test_who_may_set_what(callers: dict[str, Domain], guest: Domain, caller: str) -> None:
    for index, expected in SET[caller].items():
        before = list(guest.hvm.params)
        value = VALUE.get(index, 7)
        got = errno_of(lambda i=index, v=value: callers[caller].hvm.set_param(1, i, v))
        assert (index, got) == (index, expected)
        if expected == OK:
            assert guest.hvm.params[index] == value
        else:
            assert guest.hvm.params == before


@pytest.mark.parametrize("caller", GET)
def test_who_may_get_what(callers: dict[str, Domain], guest: Domain, caller: str) -> None:
    guest.hvm.params[:] = [index + 1000 for index in range(39)]
    for index, expected in GET[caller].items():
        hvm = callers[caller].hvm
        got = errno_of(lambda i=index, h=hvm: h.get_param(1, i))
        assert (index, got) == (index, expected)
        if expected == OK:
            assert hvm.get_param(1, index) == index + 1000


@pytest.mark.parametrize("index", range(39))
def test_set_twice(dom0: Domain, guest: Domain, index: int) -> None:
    if index in GONE or index == 35:
        return
    first = VALUE.get(index, 7)
    dom0.hvm.set_param(1, index, first)
    dom0.hvm.set_param(1, index, first)
    second = {10: 0, 14: 0, 31: 0, 36: 4, 38: 0}.get(index, 9)
    expected = EEXIST if index in ONCE else OK
    assert errno_of(lambda: dom0.hvm.set_param(1, index, second)) == expected
    assert guest.hvm.params[index] == (first if expected else second)


ORDER = [
    ("index 39", 1, 39, 7, EINVAL),
    ("index beyond u32", 1, 1 << 40, 7, EINVAL),
    ("index 39 of nobody", 9, 39, 7, EINVAL),
    ("nobody", 9, 0, 7, ESRCH),
    ("nobody, gone", 9, 4, 7, ESRCH),
    ("a PV guest", 2, 0, 7, EINVAL),
    ("timer mode 4", 1, 10, 4, EINVAL),
    ("S state 1", 1, 14, 1, EINVAL),
    ("triple fault reason 6", 1, 31, 6, EINVAL),
    ("FIP width 3", 1, 36, 3, EINVAL),
    ("MCA capability 2", 1, 38, 2, EINVAL),
    ("more than u64", 1, 0, 1 << 64, EINVAL),
]


@pytest.mark.parametrize(
    ("domid", "index", "value", "expected"),
    [row[1:] for row in ORDER],
    ids=[row[0] for row in ORDER],
)
def test_order_of_checks(
    dom0: Domain, guest: Domain, domid: int, index: int, value: int, expected: int
) -> None:
    dom0.domctl.createdomain(2, max_vcpus=1, flags=0)
    before = list(guest.hvm.params)
    assert errno_of(lambda: dom0.hvm.set_param(domid, index, value)) == expected
    if value == 7:
        assert errno_of(lambda: dom0.hvm.get_param(domid, index)) == expected
    assert guest.hvm.params == before


def test_a_pv_guest_is_not_asked_for_privilege_first(guest: Domain, dom0: Domain) -> None:
    dom0.domctl.createdomain(2, max_vcpus=1, flags=0)
    assert errno_of(lambda: guest.hvm.get_param(2, 0)) == EINVAL


def test_self_is_the_caller(guest: Domain) -> None:
    guest.hvm.set_param(SELF, 0, 2 << 56 | 0x30)
    assert guest.hvm.get_param(SELF, 0) == guest.hvm.get_param(1, 0) == 2 << 56 | 0x30


VECTORS = [
    ("the lowest", 0, 0x10, OK),
    ("the highest", 1, 0xFF, OK),
    ("an exception", 0, 0x0F, EINVAL),
    ("0", 0, 0, EINVAL),
    ("no u8", 0, 0x100, EINVAL),
    ("no vcpu", 2, 0x30, ENOENT),
    ("no vcpu, an exception", 2, 3, EINVAL),
]


@pytest.mark.parametrize(
    ("vcpu", "vector", "expected"),
    [row[1:] for row in VECTORS],
    ids=[row[0] for row in VECTORS],
)
def test_upcall_vector(
    hypervisor: Hypervisor, dom0: Domain, vcpu: int, vector: int, expected: int
) -> None:
    assert dom0.is_control
    guest = make_domain(hypervisor, vcpus=2)
    ran: list[int] = []
    for number in range(2):
        guest.set_upcall(number, lambda n=number: ran.append(n))
    call = guest.hvm.set_evtchn_upcall_vector
    assert errno_of(lambda: call(vcpu, vector)) == expected
    hypervisor.loop.run()
    assert ran == ([vcpu] if expected == OK else [])  # once, though nothing is pending


def test_upcall_vector_of_a_pv_guest(dom0: Domain) -> None:
    pv = dom0.domctl.createdomain(max_vcpus=1, flags=0)
    assert errno_of(lambda: pv.hvm.set_evtchn_upcall_vector(0, 0x30)) == EINVAL


def test_hvm_op_by_number(guest: Domain) -> None:
    assert guest.hvm.hvm_op(0, SELF, 2, 5) == 0
    assert guest.hvm.hvm_op(1, SELF, 2) == 5
    assert guest.hvm.hvm_op(9, SELF, 0x1000) == 0
    assert guest.hvm.hvm_op(23, 0, 0x20) == 0
    for unknown in (2, 3, 4, 99):
        with pytest.raises(HypercallError) as caught:
            guest.hvm.hvm_op(unknown)
        assert caught.value.errno == ENOSYS


def test_what_is_at_a_pfn(callers: dict[str, Domain], dom0: Domain, guest: Domain) -> None:
    ram, none, shared, granted = 0x100, 0x90000, guest.holes.alloc(), guest.holes.alloc()
    guest.add_to_physmap_grant(0, shared)
    page, frame = dom0.pages.alloc(), dom0.holes.alloc()
    dom0.add_to_physmap_grant(0, frame)
    dom0.write(frame, 8 * 8, bytes((1, 0)) + guest.domid.to_bytes(2, "little"))
    dom0.store32(frame, 8 * 8 + 4, page)
    guest.gnttab.map(0, 8, granted)
    ram_rw, mmio_dm = 0, 2
    kinds = {ram: ram_rw, none: mmio_dm, shared: mmio_dm, granted: mmio_dm, -1: 2, 1 << 40: 2}
    for caller, domid in (
        ("itself", SELF),
        ("control", guest.domid),
        ("device model", guest.domid),
    ):
        hvm = callers[caller].hvm
        assert {pfn: hvm.get_mem_type(domid, pfn) for pfn in kinds} == kinds
    assert guest.hvm.hvm_op(15, SELF, ram) == ram_rw
    assert errno_of(lambda: callers["other"].hvm.get_mem_type(guest.domid, ram)) == EPERM
    assert errno_of(lambda: dom0.hvm.get_mem_type(77, ram)) == ESRCH
    dom0.is_hvm = False
    assert errno_of(lambda: dom0.hvm.get_mem_type(SELF, ram)) == EINVAL
