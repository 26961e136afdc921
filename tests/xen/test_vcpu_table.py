"""vcpu_op, sched_op and set_timer_op: operation by situation, and what Xen answers.

The numbers are those of public/vcpu.h and public/sched.h, the answers those of spec xen-core
7.2 and 7.3. What fails leaves everything as it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.xen.conftest import domain, map_shared_info
from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor

MS = 1_000_000
S = 1_000_000_000
NOW = 10 * S + 7  # of every situation
PAGE = RAM_FIRST_PFN + 9
ADDRESS = PAGE << 12
ALL = (1 << 64) - 1
HOLE = 0x90  # no page there


def plain(_guest: Domain) -> None:
    """Vcpu 0 runs, 1 and 2 are down and have no context."""


def context(guest: Domain) -> None:
    guest.vcpu_op.initialise(1)


def two_up(guest: Domain) -> None:
    context(guest)
    guest.vcpu_op.up(1)


def registered(guest: Domain) -> None:
    guest.vcpu_op.register_vcpu_info(0, PAGE + 1, 64)


def areas(guest: Domain) -> None:
    guest.vcpu_op.register_runstate_phys_area(0, ADDRESS)
    guest.vcpu_op.register_vcpu_time_phys_area(0, ADDRESS + 64)


def ballooned(guest: Domain) -> None:
    guest.check(guest.memory.decrease_reservation(guest.DOMID_SELF, [PAGE]))


def armed(guest: Domain) -> None:
    guest.sched.set_timer_op(NOW + S)
    guest.vcpu_op.set_periodic_timer(0, 100 * MS)


def code(guest: Domain) -> None:
    guest.sched.shutdown_code(3)


def dog(guest: Domain) -> None:
    assert guest.sched.watchdog(0, 30) == 1


def dogs(guest: Domain) -> None:
    dog(guest)
    assert guest.sched.watchdog(0, 30) == 2


def second_dog(guest: Domain) -> None:
    dogs(guest)
    guest.sched.watchdog(1, 0)


VCPU: list[tuple[Callable[[Domain], None], int, int, dict[str, int], object]] = [
    # situation, VCPUOP, vcpu, arguments, result
    (plain, 0, 3, {}, "ENOENT"),
    (plain, 0, 0xFFFFFFFF, {}, "ENOENT"),
    (plain, 0, 0, {}, "EEXIST"),
    (plain, 0, 1, {}, None),
    (context, 0, 1, {}, "EEXIST"),
    (two_up, 0, 1, {}, "EEXIST"),
    (plain, 1, 3, {}, "ENOENT"),
    (plain, 1, 1, {}, "EINVAL"),
    (context, 1, 1, {}, None),
    (two_up, 1, 1, {}, None),
    (plain, 1, 0, {}, None),
    (plain, 2, 3, {}, "ENOENT"),
    (two_up, 2, 1, {}, None),
    (two_up, 2, 0, {}, None),
    (two_up, 2, 2, {}, None),
    (plain, 2, 1, {}, None),
    (plain, 3, 3, {}, "ENOENT"),
    (plain, 3, 0, {}, 1),
    (plain, 3, 1, {}, 0),
    (context, 3, 1, {}, 0),
    (two_up, 3, 1, {}, 1),
    (plain, 4, 3, {}, "ENOENT"),
    (plain, 5, 3, {"address": ADDRESS}, "ENOENT"),
    (plain, 5, 0, {"address": ADDRESS + 1}, None),
    (plain, 5, 0, {"address": ADDRESS + 4090}, None),
    (plain, 5, 0, {"address": HOLE << 12}, None),
    (plain, 5, 1, {"address": ADDRESS}, None),
    (plain, 5, 0, {"address": 1 << 63}, "EFAULT"),
    (plain, 6, 3, {"period_ns": 10 * MS}, "ENOENT"),
    (plain, 6, 0, {"period_ns": 0}, "EINVAL"),
    (plain, 6, 0, {"period_ns": MS - 1}, "EINVAL"),
    (plain, 6, 0, {"period_ns": MS}, None),
    (plain, 6, 1, {"period_ns": MS}, None),
    (plain, 6, 0, {"period_ns": (1 << 62) - 1}, None),
    (plain, 6, 0, {"period_ns": 1 << 62}, "EINVAL"),
    (armed, 6, 0, {"period_ns": ALL}, "EINVAL"),
    (armed, 6, 0, {"period_ns": MS - 1}, "EINVAL"),
    (plain, 7, 3, {}, "ENOENT"),
    (plain, 7, 0, {}, None),
    (armed, 7, 0, {}, None),
    (plain, 8, 3, {"timeout_abs_ns": NOW + S}, "ENOENT"),
    (plain, 8, 1, {"timeout_abs_ns": NOW + S}, "EINVAL"),
    (two_up, 8, 1, {"timeout_abs_ns": NOW + S}, "EINVAL"),
    (two_up, 8, 1, {"timeout_abs_ns": NOW + S, "current": 1}, None),
    (two_up, 8, 0, {"timeout_abs_ns": NOW + S, "current": 1}, "EINVAL"),
    (plain, 8, 0, {"timeout_abs_ns": NOW - 1, "flags": 1}, None),
    (plain, 8, 0, {"timeout_abs_ns": 0}, None),
    (plain, 9, 3, {}, "ENOENT"),
    (plain, 9, 0, {}, None),
    (armed, 9, 0, {}, None),
    (armed, 9, 1, {}, "EINVAL"),
    (armed, 9, 0, {"current": 1}, "EINVAL"),
    (plain, 10, 3, {"gfn": PAGE, "offset": 0}, "ENOENT"),
    (plain, 10, 3, {"gfn": PAGE, "offset": 4096}, "ENOENT"),
    (plain, 10, 0, {"gfn": PAGE, "offset": 4096}, "EINVAL"),
    (plain, 10, 0, {"gfn": PAGE, "offset": 0xFFFFFFFF}, "EINVAL"),
    (plain, 10, 0, {"gfn": ALL, "offset": 0}, "EINVAL"),
    (plain, 10, 0, {"gfn": ALL >> 12, "offset": 0}, "EINVAL"),
    (registered, 10, 0, {"gfn": PAGE, "offset": 4096}, "EINVAL"),
    (registered, 10, 0, {"gfn": PAGE, "offset": 0}, "EBUSY"),
    (registered, 10, 0, {"gfn": PAGE, "offset": 4095}, "EBUSY"),
    (registered, 10, 0, {"gfn": HOLE, "offset": 0}, "EBUSY"),
    (registered, 10, 1, {"gfn": PAGE + 1, "offset": 128}, None),
    (plain, 10, 0, {"gfn": PAGE, "offset": 4040}, "ENXIO"),
    (plain, 10, 0, {"gfn": PAGE, "offset": 4033}, "ENXIO"),
    (plain, 10, 0, {"gfn": PAGE, "offset": 4}, "ENXIO"),
    (plain, 10, 0, {"gfn": HOLE, "offset": 4}, "ENXIO"),
    (plain, 10, 0, {"gfn": HOLE, "offset": 0}, "EINVAL"),
    (ballooned, 10, 0, {"gfn": PAGE, "offset": 0}, "EINVAL"),
    (plain, 10, 0, {"gfn": PAGE, "offset": 4032}, None),
    (plain, 10, 0, {"gfn": PAGE, "offset": 8}, None),
    (plain, 11, 3, {}, "ENOENT"),
    (plain, 11, 0, {}, None),
    (plain, 12, 3, {}, "ENOENT"),
    (plain, 12, 0, {}, "EINVAL"),  # not pinned
    (plain, 16, 0, {}, "ENOSYS"),
    (plain, 16, 3, {}, "ENOENT"),
    (plain, 0xFFFFFFFF, 0, {}, "ENOSYS"),
    (plain, 13, 3, {"address": ADDRESS}, "ENOENT"),
    (plain, 13, 0, {"address": ADDRESS + 4090}, None),
    (plain, 13, 0, {"address": HOLE << 12}, None),
    (plain, 13, 0, {"address": 1 << 48}, "EFAULT"),
    (plain, 14, 3, {"address": ADDRESS}, "ENOENT"),
    (plain, 14, 0, {"address": ADDRESS + 4048}, None),
    (plain, 14, 0, {"address": ADDRESS + 4056}, "ENXIO"),
    (plain, 14, 0, {"address": ADDRESS + 4}, "ENXIO"),
    (plain, 14, 0, {"address": HOLE << 12}, "EINVAL"),
    (plain, 14, 0, {"address": ALL - 4095}, "EINVAL"),
    (plain, 14, 0, {"address": ALL - 7}, "ENXIO"),
    (plain, 14, 0, {"address": ALL}, None),
    (areas, 14, 0, {"address": HOLE << 12}, "EINVAL"),
    (areas, 14, 0, {"address": ADDRESS + 128}, None),
    (ballooned, 14, 0, {"address": ADDRESS}, "EINVAL"),
    (plain, 15, 3, {"address": ADDRESS}, "ENOENT"),
    (plain, 15, 0, {"address": ADDRESS + 4064}, None),
    (plain, 15, 0, {"address": ADDRESS + 4072}, "ENXIO"),
    (plain, 15, 0, {"address": ADDRESS + 2}, "ENXIO"),
    (plain, 15, 0, {"address": HOLE << 12}, "EINVAL"),
    (areas, 15, 0, {"address": ADDRESS + 4}, "ENXIO"),
    (areas, 15, 0, {"address": ALL}, None),
    (ballooned, 15, 0, {"address": ADDRESS}, "EINVAL"),
]

SCHED: list[tuple[Callable[[Domain], None], str, tuple[int, ...], object]] = [
    (plain, "block", (0,), True),
    (plain, "block", (3,), "ENOENT"),
    (plain, "shutdown", (0x102,), None),
    (plain, "shutdown_code", (3,), None),
    (code, "shutdown_code", (4,), None),
    (plain, "remote_shutdown", (0x7FF0, 1), "ESRCH"),
    (plain, "remote_shutdown", (77, 1), "ESRCH"),
    (plain, "remote_shutdown", (0, 1), "EPERM"),
    (plain, "remote_shutdown", (1, 1), "EPERM"),  # itself, by its number
    (plain, "watchdog", (3, 10), "EINVAL"),
    (plain, "watchdog", (0xFFFFFFFF, 10), "EINVAL"),
    (plain, "watchdog", (1, 10), "EINVAL"),
    (plain, "watchdog", (1, 0), "EINVAL"),
    (plain, "watchdog", (2, 0), "EINVAL"),
    (plain, "watchdog", (0, 10), 1),
    (dog, "watchdog", (0, 10), 2),
    (dog, "watchdog", (2, 10), "EINVAL"),
    (dog, "watchdog", (1, 10), 0),
    (dog, "watchdog", (1, 0), 0),
    (dogs, "watchdog", (0, 10), "ENOSPC"),
    (dogs, "watchdog", (0, 0), "ENOSPC"),
    (dogs, "watchdog", (3, 0), "EINVAL"),
    (dogs, "watchdog", (2, 10), 0),
    (second_dog, "watchdog", (0, 10), 1),
    (second_dog, "watchdog", (1, 10), "EINVAL"),
    (plain, "set_timer_op", (NOW + 1, 3), "ENOENT"),
    (armed, "set_timer_op", (0,), None),
]


def snapshot(guest: Domain) -> Any:
    """Everything that an operation here may change."""
    return (
        [
            (one.initialised, one.down, one.blocked, one.state, one.period_ns, one.runstate())
            for one in guest.vcpu
        ],
        [entry[:2] for entry in guest.loop._timers if entry[2].fires(entry[1])],
        [dog.in_use for dog in guest.sched.watchdogs],
        guest.read(0x80, 0, 4096),
        guest.read(PAGE + 1, 0, 4096),
        [lib.frame_refs(guest._hypervisor.machine, frame) for frame in range(700)],
        (guest.shutdown_code, guest.is_shutdown, guest.vcpu_op.runstate_update_flag),
        [upcall.queued or upcall.due for upcall in guest.upcalls],
        list(guest.upcalls),
    )


def made(hypervisor: Hypervisor, situation: Callable[[Domain], None]) -> Domain:
    domain(hypervisor, 0)
    guest = hypervisor.create_domain(vcpus=3, max_pages=512)
    guest.populate(256)
    guest.unpause()
    guest.loop.advance(NOW)
    guest.read(PAGE, 0, 8192)  # touched: a frame of its own from here on
    map_shared_info(guest)
    situation(guest)
    return guest


def check(guest: Domain, expected: object, call: Callable[[], object], named: str) -> None:
    if isinstance(expected, str):
        before = snapshot(guest)
        with pytest.raises(HypercallError) as caught:
            call()
        assert caught.value.name == expected
        assert caught.value.errno == getattr(errno, expected)
        assert caught.value.operation == named
        assert caught.value.arguments
        assert snapshot(guest) == before
    else:
        assert call() == expected


def _ids(row: tuple[Any, ...]) -> str:
    situation, *rest, expected = row
    return f"{situation.__name__} {rest} {expected}"


@pytest.mark.parametrize("row", VCPU, ids=_ids)
def test_vcpu_op(hypervisor: Hypervisor, row: Any) -> None:
    situation, op, vcpu, arguments, expected = row
    guest = made(hypervisor, situation)
    name = OP_NAMES.get(op, f"vcpu_op {op}")
    check(guest, expected, lambda: guest.vcpu_op.call(op, vcpu, **arguments), name)


@pytest.mark.parametrize("row", SCHED, ids=_ids)
def test_sched_op(hypervisor: Hypervisor, row: Any) -> None:
    situation, op, arguments, expected = row
    guest = made(hypervisor, situation)
    name = op if op == "set_timer_op" else f"SCHEDOP_{op}"
    check(guest, expected, lambda: getattr(guest.sched, op)(*arguments), name)


OP_NAMES = {
    number: f"VCPUOP_{name}"
    for number, name in enumerate([
        "initialise", "up", "down", "is_up", "get_runstate_info",
        "register_runstate_memory_area", "set_periodic_timer", "stop_periodic_timer",
        "set_singleshot_timer", "stop_singleshot_timer", "register_vcpu_info", "send_nmi",
        "get_physid",
        "register_vcpu_time_memory_area", "register_runstate_phys_area",
        "register_vcpu_time_phys_area",
    ])
}  # fmt: skip


@pytest.mark.parametrize(
    ("cmd", "kind", "expected"),
    [(0, 5, None), (1, 5, None), (2, 5, "ENOSYS"), (0, 0, "EINVAL"), (0, 3, "EINVAL"),
     (2, 3, "EINVAL"), (0, 64, "EINVAL")],
)  # fmt: skip
def test_vm_assist(hypervisor: Hypervisor, cmd: int, kind: int, expected: object) -> None:
    guest = made(hypervisor, plain)
    check(guest, expected, lambda: guest.vcpu_op.vm_assist(cmd, kind), "vm_assist")


@pytest.mark.parametrize(
    ("offset", "expected"), [(4, None), (2, "ENXIO"), (4036, "ENXIO"), (4032, None)]
)
def test_a_32_bit_guest_aligns_vcpu_info_to_4(
    hypervisor: Hypervisor, offset: int, expected: object
) -> None:
    domain(hypervisor, 0)
    guest = hypervisor.create_domain(vcpus=1, max_pages=512, is_32bit=True)
    guest.populate(256)
    guest.unpause()
    guest.read(PAGE, 0, 8192)
    map_shared_info(guest)
    check(
        guest,
        expected,
        lambda: guest.vcpu_op.register_vcpu_info(0, PAGE, offset),
        "VCPUOP_register_vcpu_info",
    )


def test_who_controls_a_domain_shuts_it_down_from_outside(hypervisor: Hypervisor) -> None:
    guest = made(hypervisor, plain)
    dom0 = hypervisor.domains[0]
    dom0.sched.remote_shutdown(guest.domid, 0x1_02)
    assert guest.is_shutdown
    assert guest.shutdown_code == 2
    model = domain(hypervisor)
    other = domain(hypervisor)
    with pytest.raises(HypercallError, match="EPERM"):
        model.sched.remote_shutdown(other.domid, 1)
    model.target = other
    model.sched.remote_shutdown(other.domid, 1)
    assert other.shutdown_code == 1
