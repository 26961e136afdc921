"""Every method that is a hypercall: what it is refused for is told, whatever it is asked.

The tables of each operation hold the codes. Here arguments are any numbers, most of them
wrong, and each failure names the operation as Xen does, what it was given, and why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.xen.conftest import domain
from tests.xen.evtchn_world import CONTROL_PFN
from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import CopySide
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

# What Xen or a toolstack does without a hypercall, and what takes structures: tests of their own.
OTHERS = {
    "evtchn": {
        "alloc_xen_port", "bound", "callbacks_changed", "close_all", "free_xen_port",
        "notify_from_xen", "poll", "raise_port", "raise_virq", "usable", "virq_port",
    },
    "gnttab": {"copy", "grow", "hypercall", "physmap_frame", "pinned", "release_maps"},
    "memory": {"relinquish", "unmap_foreign"},
    "vcpu_op": {"call"},
    "sched": {"destroy"},
    "hvm": {"hvm_op"},
    "domctl": {"create_domain", "destroy_domain", "debug_keys"},
}  # fmt: skip
PREFIXES = ("EVTCHNOP_", "GNTTABOP_", "XENMEM_", "VCPUOP_", "SCHEDOP_", "HVMOP_", "XEN_DOMCTL_")
BARE = {"set_timer_op", "vm_assist"}

NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 8, 9, 15, 16, 24, 64, 99, 255, 4095, 4096, 0x100, 0x110, 0x7FF0, 0x7FF1,
     0x7FF4, 1 << 15, 1 << 16, 1 << 20, 1 << 27, 1 << 28, (1 << 32) - 1, 1 << 32, 1 << 62,
     (1 << 64) - 1, -1]
)  # fmt: skip
SIDES = st.builds(CopySide, offset=NUMBERS, domid=NUMBERS, ref=NUMBERS) | st.builds(
    CopySide, offset=NUMBERS, domid=NUMBERS, gmfn=NUMBERS
)
LISTS = st.lists(NUMBERS, max_size=3)


@attrs.define(eq=False)
class Pair:
    hypervisor: Hypervisor
    dom0: Domain
    guest: Domain

    def counts(self) -> object:
        """What no refused operation changes; the tables compare every byte."""
        machine = self.hypervisor.machine
        return lib.machine_free_pages(machine), [
            (one.domid, one.evtchn.bound(), len(one.gnttab.maptrack), one.gnttab.pinned(),
             one.gnttab.nr_frames, one.gnttab.version, one.tot_pages, one.max_pages, one.vcpus,
             one.pause_count, one.shutdown_code, one.evtchn.fifo, list(one.hvm.params),
             [(vcpu.down, vcpu.blocked, vcpu.period_ns) for vcpu in one.vcpu])
            for one in self.hypervisor.domains.values()
        ]  # fmt: skip


def pair(*, fifo: bool) -> Pair:
    hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 14)
    made = Pair(hypervisor, domain(hypervisor, 0), domain(hypervisor))
    if fifo:
        made.guest.evtchn.init_control(CONTROL_PFN, 0, 0)
    far = made.guest.evtchn.alloc_unbound(0)
    made.dom0.evtchn.bind_interdomain(1, far)
    made.guest.check(lib.grant_entry_set(made.guest.kernel, 8, 0, 0x100, 1))
    return made


def hypercalls() -> Iterator[tuple[str, str]]:
    made = pair(fifo=False)
    for room, others in OTHERS.items():
        for name, _ in inspect.getmembers(getattr(made.guest, room), inspect.ismethod):
            if not name.startswith("_") and name not in others:
                yield room, name
    made.hypervisor.close()


def strategy(parameter: inspect.Parameter) -> st.SearchStrategy[Any]:
    hint = str(parameter.annotation)
    if "CopySide" in hint:
        return SIDES
    if "list" in hint or "Sequence" in hint:
        return LISTS
    return st.booleans() if hint == "bool" else NUMBERS


def arguments(data: st.DataObject, call: Callable[..., Any], made: Pair) -> dict[str, Any]:
    """One for each parameter; those with a default are left out at times."""
    asked: dict[str, Any] = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            asked["max_vcpus"] = data.draw(st.sampled_from([0, 1, 129]))  # createdomain
        elif name == "wake":
            asked[name] = made.guest.tasks[0]
        elif parameter.default is parameter.empty or data.draw(st.booleans()):
            asked[name] = data.draw(strategy(parameter))
    return asked


HYPERCALLS = list(hypercalls())
# The parameter that is no argument of the hypercall: the vcpu that makes it.
WHO_CALLS = {"gnttab": "vcpu", "sched": "vcpu", "vcpu_op": "current"}
# Those that say how far they came, and keep what they did until then.
PARTIAL = {"add_to_physmap", "add_to_physmap_batch", "acquire_resource", "transfer"}


@pytest.mark.parametrize(("room", "name"), HYPERCALLS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_refusal_says_what_of_which_and_why(data: st.DataObject, room: str, name: str) -> None:
    made = pair(fifo=data.draw(st.booleans()))
    try:
        caller = data.draw(st.sampled_from([made.guest, made.dom0]))
        call = getattr(getattr(caller, room), name)
        asked = arguments(data, call, made)
        before = made.counts()
        try:
            call(**asked)
        except (OverflowError, LocalProtocolError):
            assert name in PARTIAL or made.counts() == before
        except (HypercallError, GrantError) as error:
            assert error.operation.startswith(PREFIXES) or error.operation in BARE
            assert error.arguments
            assert error.reason
            told = list(error.arguments.values())
            who = WHO_CALLS.get(room)
            assert [
                v for k, v in asked.items() if type(v) is int and k != who and v not in told
            ] == []
            assert name in PARTIAL or made.counts() == before
    finally:
        if not made.hypervisor.closed:
            made.hypervisor.close()


def test_every_hypercall_is_asked() -> None:
    assert len(HYPERCALLS) >= 70
