"""How a toolstack suspends a domain: every way, and what guests make of it.

The guest here is no kernel but a script: what it does, and when, in seconds after the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest

from xenpv import Disk, MemoryImage, Platform, ToolstackError, Vif
from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.host.domainconfig import DomainConfig, DomainType
from xenpv.host.domsuspend import Quirk, Suspended, SuspendWay
from xenpv.host.libxl import LIBXL, Created
from xenpv.xen.loop import NS_PER_S
from xenpv.xen.upcall import Dispatcher

EVTCHN, HYPERVISOR, CONTROL = SuspendWay.EVTCHN, SuspendWay.HYPERVISOR, SuspendWay.CONTROL
TIMEDOUT = LIBXL.GUEST_TIMEDOUT


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


@attrs.define(eq=False)
class Script:
    """A guest that does things at their time; `made` runs, without a kernel."""

    xen: Platform
    made: Created
    port: int = 0
    returned: list[int] = attrs.field(factory=list)

    @property
    def home(self) -> str:
        return f"/local/domain/{self.made.domid}"

    def at(self, seconds: float, *names: str, domain: object = None) -> None:
        domain = self.made.domain if domain is None else domain
        task = domain.task("script", lambda: [getattr(self, name)() for name in names])
        domain.timer(task).arm(round(seconds * NS_PER_S))

    def write(self, value: str) -> None:
        self.xen.toolstack.xs.write(f"{self.home}/control/shutdown", value)

    def key(self) -> str | None:
        return self.xen.toolstack.xs.read(f"{self.home}/control/shutdown")

    # what a script may name

    def ack(self) -> None:
        self.write("")

    def garbage(self) -> None:
        self.write("suspend ")

    def again(self) -> None:
        self.write("suspend")

    def remove(self) -> None:
        self.xen.toolstack.xs.rm(f"{self.home}/control/shutdown")

    def suspend(self) -> None:
        domain = self.made.domain
        domain.suspend(domain.task("woken", lambda: self.returned.append(domain.suspend_result)))

    def crash(self) -> None:
        self.made.domain.shutdown(3)

    def poweroff(self) -> None:
        self.made.domain.shutdown(0)

    def kick(self) -> None:
        self.made.domain.evtchn.send(self.port)

    def close(self) -> None:
        self.made.domain.evtchn.close(self.port)

    def destroy(self) -> None:
        self.xen.dom0.domctl.destroydomain(self.made.domid)

    def unpause(self) -> None:
        self.made.domain.unpause()


def script(
    xen: Platform, *, kind: DomainType = DomainType.HVM, pv: int = 24, s_state: int = 0
) -> Script:
    made = xen.toolstack.create(DomainConfig(name="raw", type=kind))
    for index, value in ((HVM_PARAM.CALLBACK_IRQ, pv), (HVM_PARAM.ACPI_S_STATE, s_state)):
        xen.dom0.hvm.set_param(made.domid, index, value)
    made.domain.unpause()
    return Script(xen, made)


def offer(one: Script) -> None:
    """The guest's part of the first way: an unbound port for the toolstack's domain."""
    one.port = one.made.domain.evtchn.alloc_unbound(0)
    one.xen.toolstack.xs.write(f"{one.home}/device/suspend/event-channel", str(one.port))


def ask(one: Script) -> tuple[Suspended | LIBXL, float]:
    """What came of it, and after how many seconds."""
    start = one.xen.loop.now
    result: Suspended | LIBXL
    try:
        result = one.xen.toolstack.domsuspend.suspend(one.made)
    except ToolstackError as error:
        result = error.code
    return result, (one.xen.loop.now - start) / NS_PER_S


# kind, PV drivers, S-state, offers a port: which way
WAYS = [
    ("hvm", 24, 0, True, EVTCHN),
    ("hvm", 24, 3, True, HYPERVISOR),
    ("hvm", 0, 0, True, EVTCHN),
    ("hvm", 0, 3, True, HYPERVISOR),
    ("hvm", 24, 0, False, CONTROL),
    ("hvm", 24, 3, False, HYPERVISOR),
    ("hvm", 0, 0, False, HYPERVISOR),
    ("hvm", 0, 3, False, HYPERVISOR),
    ("pvh", 24, 0, True, EVTCHN),
    ("pvh", 24, 3, True, CONTROL),
    ("pvh", 0, 0, False, CONTROL),
    ("pvh", 24, 3, False, CONTROL),
    ("pv", 0, 0, True, EVTCHN),
    ("pv", 0, 3, True, EVTCHN),
    ("pv", 0, 0, False, CONTROL),
]


@pytest.mark.parametrize(("kind", "pv", "s_state", "offers", "way"), WAYS)
def test_which_way_a_domain_is_asked(
    xen: Platform, kind: str, pv: int, s_state: int, offers: bool, way: SuspendWay
) -> None:
    one = script(xen, kind=DomainType(kind), pv=pv, s_state=s_state)
    if offers:
        offer(one)
    if way is not HYPERVISOR:
        one.at(1, "ack", "suspend")
    result, _ = ask(one)
    assert result == Suspended(way, guest_responded=way is not EVTCHN)
    info = xen.dom0.domctl.getdomaininfo(one.made.domid)
    assert (one.made.domain.is_shutdown, info.shutdown_code) == (True, 2)
    assert one.key() == ""


# script as (second, what), outcome, seconds it took, control/shutdown afterwards
BY_CONTROL = [
    pytest.param([(0, "ack suspend")], CONTROL, 0, "", id="at once"),
    pytest.param([(3, "ack"), (5, "suspend")], CONTROL, 5, "", id="acknowledged, then suspended"),
    pytest.param([(5, "suspend")], TIMEDOUT, 60, "", id="suspended without acknowledging"),
    pytest.param([(59.9, "ack"), (60, "suspend")], CONTROL, 60, "", id="acknowledged after 59.9 s"),
    pytest.param([(60, "ack"), (119, "suspend")], CONTROL, 119, "", id="acknowledged after 60 s"),
    pytest.param([(60.1, "ack suspend")], TIMEDOUT, 60, "", id="acknowledged too late"),
    pytest.param([], TIMEDOUT, 60, "", id="never acknowledged"),
    pytest.param([(2, "ack")], TIMEDOUT, 62, "", id="acknowledged, never suspended"),
    pytest.param([(2, "ack"), (62, "suspend")], CONTROL, 62, "", id="suspended 60 s later"),
    pytest.param([(2, "ack"), (62.1, "suspend")], TIMEDOUT, 62, "", id="suspended too late"),
    pytest.param([(2, "garbage"), (4, "suspend")], CONTROL, 4, "suspend ", id="garbage acknowledges"),
    pytest.param([(2, "garbage")], TIMEDOUT, 62, "suspend ", id="garbage, then nothing"),
    pytest.param([(2, "remove"), (4, "suspend")], CONTROL, 4, None, id="key removed"),
    pytest.param([(2, "ack again"), (4, "suspend")], TIMEDOUT, 60, "", id="written back at once"),
    pytest.param([(2, "ack"), (3, "again"), (4, "suspend")], CONTROL, 4, "suspend", id="written back later"),
    pytest.param([(2, "crash")], TIMEDOUT, 60, "", id="crashed before acknowledging"),
    pytest.param([(2, "ack"), (3, "crash")], LIBXL.FAIL, 3, "", id="crashed after acknowledging"),
    pytest.param([(2, "ack"), (3, "poweroff")], LIBXL.FAIL, 3, "", id="powered off"),
    pytest.param([(2, "ack suspend"), (9, "crash")], CONTROL, 2, "", id="what comes later is not waited for"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "outcome", "seconds", "key"), BY_CONTROL)
def test_by_the_control_key(
    xen: Platform, steps: list[tuple[float, str]], outcome: object, seconds: float, key: str | None
) -> None:
    one = script(xen)
    for at, names in steps:
        one.at(at, *names.split())
    result, took = ask(one)
    assert (result.way if isinstance(result, Suspended) else result) == outcome
    assert took == pytest.approx(seconds, abs=0.1)
    assert one.key() == key


# the same by event channel: nothing is acknowledged, only a suspend raises the channel
BY_CHANNEL = [
    pytest.param([(0, "suspend")], EVTCHN, 0, id="at once"),
    pytest.param([(60, "suspend")], EVTCHN, 60, id="after 60 s"),
    pytest.param([(60.1, "suspend")], TIMEDOUT, 60, id="too late"),
    pytest.param([], TIMEDOUT, 60, id="never"),
    pytest.param([(1, "kick"), (2, "kick")], TIMEDOUT, 60, id="only kicked"),
    pytest.param([(1, "kick"), (2, "suspend")], EVTCHN, 2, id="kicked, then suspended"),
    pytest.param([(1, "crash")], TIMEDOUT, 60, id="a crash is not heard"),
    pytest.param([(1, "poweroff")], TIMEDOUT, 60, id="nor a power-off"),
    pytest.param([(1, "crash kick")], LIBXL.FAIL, 1, id="crashed, and somebody kicked"),
    pytest.param([(1, "close"), (2, "suspend")], TIMEDOUT, 60, id="closed its port first"),
    pytest.param([(1, "ack")], TIMEDOUT, 60, id="an acknowledgement is none here"),
]


@pytest.mark.parametrize(("steps", "outcome", "seconds"), BY_CHANNEL)
def test_by_event_channel(
    xen: Platform, steps: list[tuple[float, str]], outcome: object, seconds: float
) -> None:
    one = script(xen)
    offer(one)
    for at, names in steps:
        one.at(at, *names.split())
    ports = [port.number for port in xen.dom0.evtchn._table.once_bound() if port.remote_port]
    result, took = ask(one)
    assert (result.way if isinstance(result, Suspended) else result) == outcome
    assert took == pytest.approx(seconds, abs=0.1)
    assert one.made.domain.suspend_evtchn == 0
    after = [port.number for port in xen.dom0.evtchn._table.once_bound() if port.remote_port]
    assert after == ports  # the toolstack's end is closed


def test_the_guest_hears_the_request_on_its_port_and_can_be_asked_again(xen: Platform) -> None:
    one = script(xen)
    offer(one)
    one.made.domain.start_vcpus()
    heard: list[int] = []
    kernel = Dispatcher(one.made.domain)
    kernel.bind(one.port, "suspend thread", lambda: (heard.append(one.port), one.suspend()))
    for turn in range(3):
        result, _ = ask(one)
        assert result == Suspended(EVTCHN, guest_responded=False)
        assert heard == [one.port] * (turn + 1)
        xen.toolstack.domsuspend.resume(one.made)
        xen.run()
        assert one.returned == [1] * (turn + 1)


@pytest.mark.parametrize("value", ["0", "x", "4096", "1099511627776", "7"])
def test_a_port_that_cannot_be_bound_fails_the_suspend_at_once(xen: Platform, value: str) -> None:
    """7 is a port of the guest, but not one for the toolstack's domain."""
    one = script(xen)
    while one.made.domain.evtchn.alloc_unbound(1) != 7:
        pass
    path = f"{one.home}/device/suspend/event-channel"
    xen.toolstack.xs.write(path, value)
    start = xen.loop.now
    with pytest.raises(ToolstackError, match=f"{path} is '{value}': expected a port") as caught:
        xen.toolstack.domsuspend.suspend(one.made)
    assert (caught.value.code, xen.loop.now) == (LIBXL.FAIL, start)
    assert one.key() == ""


@pytest.mark.parametrize("value", ["", "-1", "-7 x"])
def test_a_value_that_is_no_port_offers_none(xen: Platform, value: str) -> None:
    one = script(xen)
    xen.toolstack.xs.write(f"{one.home}/device/suspend/event-channel", value)
    one.at(1, "ack", "suspend")
    assert ask(one)[0] == Suspended(CONTROL, guest_responded=True)


@pytest.mark.parametrize(
    ("offers", "steps", "outcome", "seconds"),
    [
        (False, [(1, "destroy")], LIBXL.DOMAIN_NOTFOUND, 1),  # its key went with it
        (False, [(1, "ack"), (2, "destroy")], LIBXL.DOMAIN_NOTFOUND, 2),
        (True, [(1, "destroy")], TIMEDOUT, 60),  # nothing comes on the channel
    ],
)
def test_a_domain_that_is_destroyed_meanwhile(
    xen: Platform, offers: bool, steps: list[tuple[float, str]], outcome: LIBXL, seconds: float
) -> None:
    one = script(xen)
    if offers:
        offer(one)
    for at, name in steps:
        one.at(at, name, domain=xen.dom0)
    result, took = ask(one)
    assert (result, took) == (outcome, pytest.approx(seconds, abs=0.1))
    with pytest.raises(ToolstackError, match=r"domain 1 \('raw'\) is gone"):
        xen.toolstack.domsuspend.suspend(one.made)
    with pytest.raises(ToolstackError, match=r"domain 1 \('raw'\) is gone"):
        xen.toolstack.domsuspend.resume(one.made)


# who asks a paused domain, unpaused after how many seconds: the outcome
PAUSED = [
    (CONTROL, None, TIMEDOUT),
    (CONTROL, 30, CONTROL),
    (CONTROL, 61, TIMEDOUT),
    (EVTCHN, None, TIMEDOUT),
    (EVTCHN, 30, EVTCHN),
    (HYPERVISOR, None, HYPERVISOR),
]


@pytest.mark.parametrize(("way", "seconds", "outcome"), PAUSED)
def test_a_paused_domain_answers_when_it_runs_again(
    xen: Platform, way: SuspendWay, seconds: float | None, outcome: object
) -> None:
    one = script(xen, pv=0 if way is HYPERVISOR else 24)
    if way is EVTCHN:
        offer(one)
    one.at(1, "ack", "suspend")
    one.made.domain.pause()
    if seconds is not None:
        one.at(seconds, "unpause", domain=xen.dom0)
    result, _ = ask(one)
    assert (result.way if isinstance(result, Suspended) else result) == outcome
    assert one.made.domain.pause_count == (0 if seconds == 30 else 1)


def test_an_acknowledgement_between_the_timeout_and_the_clearing_counts(xen: Platform) -> None:
    one = script(xen)
    one.at(61, "suspend")
    xs = xen.toolstack.xs
    transaction = xs.transaction

    def late(body: Callable[[int], object]) -> None:
        one.ack()
        transaction(body)

    xs.transaction = late
    result, took = ask(one)
    assert (result, took) == (Suspended(CONTROL, guest_responded=True), pytest.approx(61, abs=0.1))


def test_an_acknowledgement_while_it_is_cleared_conflicts_and_counts(xen: Platform) -> None:
    one = script(xen)
    one.at(61, "suspend")
    xs = xen.toolstack.xs
    transaction = xs.transaction
    reads: list[str | None] = []

    def racing(body: Callable[[int], object]) -> None:
        def both(t: int) -> None:
            reads.append(xs.read(f"{one.home}/control/shutdown", t))
            body(t)
            if len(reads) == 1:
                one.garbage()

        transaction(both)

    xs.transaction = racing
    result, _ = ask(one)
    assert result == Suspended(CONTROL, guest_responded=True)
    assert reads == ["suspend", "suspend "]
    assert one.key() == "suspend "


@pytest.mark.parametrize(("fast", "returned"), [(True, 1), (False, 0)])
def test_resume_says_whether_it_was_cancelled(xen: Platform, fast: bool, returned: int) -> None:
    one = script(xen)
    one.at(0, "ack", "suspend")
    ask(one)
    watch = xen.xenstored.connect_local("watcher")
    watch.call(lib.XS_WATCH, b"@releaseDomain\0t\0")
    watch.events.clear()
    xen.toolstack.domsuspend.resume(one.made, fast=fast)
    xen.run()
    assert one.returned == [returned]
    assert not one.made.domain.is_shutdown
    assert not watch.events
    one.crash()
    xen.run()
    assert len(watch.events) == 1  # XS_RESUME: it fires again


def test_without_pv_drivers_no_result_is_set(xen: Platform) -> None:
    one = script(xen, pv=0)
    assert ask(one)[0] == Suspended(HYPERVISOR, guest_responded=True)
    one.made.domain.suspend_result = 7
    xen.toolstack.domsuspend.resume(one.made)
    assert one.made.domain.suspend_result == 7
    assert not one.made.domain.is_shutdown


@pytest.mark.parametrize("names", ["", "crash", "poweroff"])
def test_a_fast_resume_is_for_what_is_suspended_only(xen: Platform, names: str) -> None:
    one = script(xen)
    for name in names.split():
        getattr(one, name)()
    with pytest.raises(ToolstackError, match="domain 1 is not suspended: EINVAL") as caught:
        xen.toolstack.domsuspend.resume(one.made)
    assert caught.value.code is LIBXL.FAIL
    xen.toolstack.domsuspend.resume(one.made, fast=False)  # no such check there
    assert not one.made.domain.is_shutdown


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_whole_guest_is_suspended_and_resumed(
    xen: Platform, personality: str, fast: bool
) -> None:
    disk = Disk(MemoryImage(bytearray(b"x" * 4096)))
    guest = xen.create(name="g", disks=[disk], vifs=[Vif()], personality=personality).start()
    for _ in range(2):
        guest.suspend()
        assert guest.created.domain.shutdown_code == 2
        guest.resume(fast=fast)
        assert guest.disks[0].read(0, 8) == b"x" * 4096
        guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
        xen.run()
    assert len(xen.bridge("xenbr0").frames) >= 2
    assert guest.shutdown() == 0


@pytest.mark.parametrize(
    ("quirks", "way", "code"),
    [
        (frozenset(), EVTCHN, LIBXL.FAIL),
        (frozenset(Quirk), EVTCHN, TIMEDOUT),
        (frozenset(Quirk), CONTROL, LIBXL.FAIL),
        (frozenset(Quirk), HYPERVISOR, LIBXL.FAIL),
    ],
)
def test_what_a_later_failure_counts_as(
    xen: Platform, quirks: frozenset[Quirk], way: SuspendWay, code: LIBXL
) -> None:
    domsuspend = xen.toolstack.domsuspend
    assert domsuspend.quirks == frozenset()
    domsuspend.quirks = quirks
    suspended = Suspended(way, guest_responded=way is not EVTCHN)
    assert domsuspend.failure_code(suspended, ToolstackError("disk full")) is code
