from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.evtchn import EVTCHNSTAT, VIRQ
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.upcall import Dispatcher


@pytest.fixture
def channel(dom0: Domain, guest: Domain) -> tuple[int, int]:
    """(port of the guest, port of dom0), with the bind's own event consumed."""
    here = guest.evtchn.alloc_unbound(0)
    there = dom0.evtchn.bind_interdomain(guest.domid, here)
    scan(dom0)
    return here, there


def scan(domain: Domain, *, ack: bool = True) -> list[int]:
    ports = ffi.new("uint32_t[]", 64)
    count = lib.evtchn_scan(domain.kernel, 0, ports, 64, ack)
    return list(ports[0:count])


def errno_of(call: object, *arguments: object) -> str:
    with pytest.raises(HypercallError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.name


def test_ports_are_given_lowest_first_and_never_zero(guest: Domain) -> None:
    assert [guest.evtchn.alloc_unbound(0) for _ in range(3)] == [1, 2, 3]
    guest.evtchn.close(2)
    assert guest.evtchn.alloc_unbound(0) == 2


def test_bind_interdomain_sets_the_local_port_pending(dom0: Domain, guest: Domain) -> None:
    port = guest.evtchn.alloc_unbound(0)
    there = dom0.evtchn.bind_interdomain(guest.domid, port)
    assert scan(dom0) == [there]
    assert scan(guest) == []


def test_send_reaches_the_peer_once_however_often(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    for _ in range(3):
        guest.evtchn.send(here)
    assert scan(dom0) == [there]
    assert scan(dom0) == []


def test_send_to_an_unbound_port_succeeds_silently(guest: Domain) -> None:
    port = guest.evtchn.alloc_unbound(0)
    guest.evtchn.send(port)
    assert scan(guest) == []


def test_send_refuses_what_cannot_be_sent_to(guest: Domain) -> None:
    virq = guest.evtchn.bind_virq(0)
    assert errno_of(guest.evtchn.send, 0) == "EINVAL"
    assert errno_of(guest.evtchn.send, 9) == "EINVAL"
    assert errno_of(guest.evtchn.send, 100_000) == "EINVAL"
    assert errno_of(guest.evtchn.send, virq) == "EINVAL"


def test_bind_interdomain_errors(hypervisor: Hypervisor, dom0: Domain, guest: Domain) -> None:
    other = domain(hypervisor)
    for_other = guest.evtchn.alloc_unbound(other.domid)
    bind = dom0.evtchn.bind_interdomain
    assert errno_of(bind, 77, 1) == "ESRCH"
    assert errno_of(bind, guest.domid, for_other) == "EINVAL"
    assert errno_of(bind, guest.domid, 60) == "EINVAL"
    assert errno_of(bind, guest.domid, 0) == "EINVAL"


def test_close_turns_the_peer_unbound_without_an_event(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    dom0.evtchn.close(there)
    status = guest.evtchn.status(here)
    assert (status.status, status.remote_domid) == (EVTCHNSTAT.unbound, 0)
    assert scan(guest) == []
    again = dom0.evtchn.bind_interdomain(guest.domid, here)
    assert guest.evtchn.status(here).remote_port == again


def test_close_of_a_free_port_is_einval(guest: Domain) -> None:
    assert errno_of(guest.evtchn.close, 5) == "EINVAL"
    assert guest.evtchn.status(5).status is EVTCHNSTAT.closed
    assert errno_of(guest.evtchn.status, 64) == "EINVAL"


def test_port_limit_is_enospc(hypervisor: Hypervisor) -> None:
    small = domain(hypervisor, max_event_channels=10)
    assert [small.evtchn.alloc_unbound(0) for _ in range(10)] == list(range(1, 11))
    assert errno_of(small.evtchn.alloc_unbound, 0) == "ENOSPC"


def test_a_masked_event_waits_for_unmask(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    lib.evtchn_mask(guest.kernel, here)
    dom0.evtchn.send(there)
    assert scan(guest) == []
    assert lib.evtchn_is_pending(guest.kernel, here) == 1
    guest.evtchn.unmask(here)
    assert scan(guest) == [here]


def test_guest_clearing_the_mask_itself_is_told_of_a_pending_event(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    lib.evtchn_mask(guest.kernel, here)
    assert lib.evtchn_guest_unmask(guest.kernel, here) == 0
    lib.evtchn_mask(guest.kernel, here)
    dom0.evtchn.send(there)
    assert lib.evtchn_guest_unmask(guest.kernel, here) == 1
    # Xen raised no upcall for it: acting is the guest's part.
    assert lib.evtchn_upcall_pending(guest.kernel, 0) == 0


def test_upcall_is_raised_once_until_it_is_taken(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    second = guest.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(guest.domid, second)
    assert lib.evtchn_set_pending(guest.kernel, here, 0) == 3
    assert lib.evtchn_set_pending(guest.kernel, here, 0) == 0
    assert lib.evtchn_set_pending(guest.kernel, second, 0) == 1
    assert scan(guest) == [here, second]
    dom0.evtchn.send(far)
    assert scan(guest) == [second]
    assert there != far


@pytest.mark.parametrize("vcpu", [0, 1, 31])
@pytest.mark.parametrize(
    ("is_32bit", "port"),
    [(wide, port) for wide in (False, True) for port in (1, 31, 32, 33, 63, 64, 65, 1022, 1023)]
    + [(False, 1024), (False, 4095)],
)
def test_bits_lie_where_xen_puts_them(
    hypervisor: Hypervisor, is_32bit: bool, port: int, vcpu: int
) -> None:
    made = domain(hypervisor, is_32bit=is_32bit, vcpus=32)
    width = 32 if is_32bit else 64
    info = _shared_info_view(hypervisor, made)
    before = sum(info[0:0xC00])  # the time of each vcpu
    assert lib.evtchn_set_pending(made.kernel, port, vcpu) == 3
    at = 0x800 + port // 8
    assert info[at] == 1 << port % 8
    base = 64 * vcpu  # its vcpu_info: upcall_pending first, upcall_mask next
    assert (info[base], info[base + 1]) == (1, 0)
    selector = info[base + 4 : base + 8] if is_32bit else info[base + 8 : base + 16]
    assert int.from_bytes(selector, "little") == 1 << port // width
    lib.evtchn_mask(made.kernel, port)
    masks = 0x880 if is_32bit else 0xA00
    assert info[masks + port // 8] == 1 << port % 8
    # and nothing else
    assert sum(info[0:0xC00]) - before == info[base] + sum(selector) + 2 * info[at]
    del info, selector


def _shared_info_view(hypervisor: Hypervisor, made: Domain) -> memoryview:
    for frame in range(lib.machine_high_water(hypervisor.machine)):
        if lib.frame_owner(hypervisor.machine, frame) != 0x7FF2:
            continue
        if lib.domain_add_xen_frame(made.kernel, 0x90, frame) == 0:
            view = made.view(0x90)
            lib.evtchn_set_pending(made.kernel, 2, 0)
            mine = view[0x800] == 4
            lib.evtchn_clear_pending(made.kernel, 2)
            if mine:
                scan(made)
                return view
            lib.domain_unmap(made.kernel, 0x90)
    raise AssertionError("no shared_info frame")


def test_a_32bit_domain_has_1024_ports_and_a_64bit_one_4096(hypervisor: Hypervisor) -> None:
    wide = domain(hypervisor, max_event_channels=100_000)
    narrow = domain(hypervisor, is_32bit=True, max_event_channels=100_000)
    assert (wide.evtchn.limit, narrow.evtchn.limit) == (4096, 1024)
    assert lib.evtchn_set_pending(wide.kernel, 4095, 0) == 3
    assert lib.evtchn_set_pending(wide.kernel, 4096, 0) == -22
    assert lib.evtchn_set_pending(narrow.kernel, 1024, 0) == -22


def test_scan_puts_back_what_did_not_fit(guest: Domain) -> None:
    for port in range(1, 100):
        lib.evtchn_set_pending(guest.kernel, port, 0)
    ports = ffi.new("uint32_t[]", 8)
    seen = []
    while lib.evtchn_upcall_pending(guest.kernel, 0):
        count = lib.evtchn_scan(guest.kernel, 0, ports, 8, 1)
        seen += list(ports[0:count])
    assert seen == list(range(1, 100))


def test_virq_rules(guest: Domain) -> None:
    port = guest.evtchn.bind_virq(VIRQ.ARGO)
    assert errno_of(guest.evtchn.bind_virq, VIRQ.ARGO) == "EEXIST"
    assert errno_of(guest.evtchn.bind_virq, 24) == "EINVAL"
    assert errno_of(guest.evtchn.bind_virq, VIRQ.ARGO, 1) == "EINVAL"
    assert errno_of(guest.evtchn.bind_virq, VIRQ.TIMER, 5) == "ENOENT"
    assert guest.evtchn.raise_virq(VIRQ.ARGO)
    assert scan(guest) == [port]
    guest.evtchn.close(port)
    assert not guest.evtchn.raise_virq(VIRQ.ARGO)


def test_ipi_comes_back_to_its_sender(guest: Domain) -> None:
    port = guest.evtchn.bind_ipi(0)
    guest.evtchn.send(port)
    assert scan(guest) == [port]
    assert errno_of(guest.evtchn.bind_vcpu, port, 0) == "EINVAL"
    assert errno_of(guest.evtchn.bind_vcpu, port, 3) == "ENOENT"


def test_death_unbinds_every_peer(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    _, there = channel
    hypervisor.destroy_domain(guest)
    assert dom0.evtchn.status(there).status is EVTCHNSTAT.unbound
    dom0.evtchn.send(there)
    dom0.evtchn.close(there)
    assert dom0.evtchn.bound() == 0


def test_dispatcher_runs_the_task_of_each_port_and_no_other(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    dispatcher = Dispatcher(dom0)
    ran: list[str] = []
    dispatcher.bind(there, "reader", lambda: ran.append("reader"))
    other = guest.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(guest.domid, other)
    dom0.loop.run()
    guest.evtchn.send(here)
    dom0.loop.run()
    assert ran == ["reader"]
    dispatcher.bind(far, "writer", lambda: ran.append("writer"))
    guest.evtchn.send(other)
    guest.evtchn.send(here)
    dom0.loop.run()
    assert sorted(ran) == ["reader", "reader", "writer"]
    dispatcher.unbind(there)
    guest.evtchn.send(here)
    dom0.loop.run()
    assert sorted(ran) == ["reader", "reader", "writer"]


def test_poll_runs_the_peers_consumer_of_that_port_alone(
    dom0: Domain, guest: Domain, channel: tuple[int, int]
) -> None:
    here, there = channel
    dispatcher = Dispatcher(dom0)
    ran: list[str] = []

    def answer() -> None:
        ran.append("answer")
        dom0.evtchn.send(there)

    dispatcher.bind(there, "server", answer)
    other = guest.evtchn.alloc_unbound(0)
    dispatcher.bind(dom0.evtchn.bind_interdomain(guest.domid, other), "o", lambda: ran.append("o"))
    assert not guest.evtchn.poll(here)
    guest.evtchn.send(other)
    guest.evtchn.send(here)
    assert guest.evtchn.poll(here)
    assert ran == ["answer"]
