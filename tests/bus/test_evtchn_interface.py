"""EVTCHN by version, operation and situation (xenbus spec 2.1), as a driver sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.suspend import SuspendInterface
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_TIMER
from xenpv.xen.loop import NS_PER_S

FIXED, UNBOUND, INTER_DOMAIN, VIRQ = 1, 2, 3, 4


class Scene:
    """A guest of two vcpus whose EVTCHN is made as XenBus makes it."""

    def __init__(self, world: World, *, fifo: bool, vectors: bool = True) -> None:
        self.world = world
        self.guest: Domain = world.hypervisor.create_domain(vcpus=2, max_pages=512)
        self.guest.populate(256)
        self.guest.unpause()
        self.guest.start_vcpus()
        self.suspend = SuspendInterface(self.guest)
        self.shared_info = SharedInfoInterface(self.guest, suspend=self.suspend)
        self.evtchn = EvtchnInterface(
            self.guest,
            fifo=fifo,
            vectors=vectors,
            via=24,
            suspend=self.suspend,
            shared_info=self.shared_info,
        )
        self.ran: list[str] = []
        self.fixed = self.guest.evtchn.alloc_unbound(0)
        self.loop = world.loop

    def view(self, version: int = 9) -> InterfaceVersion:
        found = query_interface([self.evtchn], EvtchnInterface.GUID, version)
        found.acquire()
        return found

    def call(self) -> None:
        self.ran.append("called")

    def far(self, channel: Any) -> int:
        return self.world.dom0.evtchn.bind_interdomain(self.guest.domid, channel.port)

    def bound(self) -> int:
        return self.guest.evtchn.bound()

    def send(self, port: int) -> None:
        self.world.dom0.evtchn.send(port)

    def resume(self, result: int = 0) -> None:
        self.loop.run()
        if result:
            self.world.dom0.domctl.setvcpucontext(self.guest.domid, 0, rax=result)
        self.world.dom0.domctl.resumedomain(self.guest.domid)
        self.loop.run()


@pytest.fixture(params=[False, True], ids=["2-level", "fifo"])
def scene(world: World, request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(world, fifo=request.param)
    assert made.evtchn.is_fifo == request.param
    made.loop.run()
    yield made


# versions

V5 = ["open", "bind", "unmask", "send", "trigger", "wait", "get_port", "close"]


@pytest.mark.parametrize(("version", "slots"), [(5, 8), (6, 8), (7, 9), (8, 9), (9, 9)])
def test_a_version_has_its_operations(scene: Scene, version: int, slots: int) -> None:
    view = scene.view(version)
    assert view.size == 32 + 8 * (2 + slots)
    assert [name for name in view.operations if name != "get_count"] == V5
    assert ("get_count" in view.operations) == (version >= 7)
    for name in view.operations:
        assert callable(getattr(view, name))


@pytest.mark.parametrize("version", [0, 4, 10])
def test_other_versions_are_not_supported(scene: Scene, version: int) -> None:
    with pytest.raises(NtStatusError) as caught:
        scene.view(version)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


# Open

OPENS: list[tuple[str, int, tuple[Any, ...], bool]] = [
    ("fixed", FIXED, ("fixed", False), True),
    ("unbound", UNBOUND, (0, True), True),
    ("unbound for nobody in particular", UNBOUND, (99, False), True),
    ("inter-domain", INTER_DOMAIN, (0, "dom0's", False), True),
    ("inter-domain, no such domain", INTER_DOMAIN, (99, 1, False), False),
    ("inter-domain, not an unbound port", INTER_DOMAIN, (0, 1, False), False),
    ("virq", VIRQ, (0, 0, 0), True),
    ("virq, vcpu 1", VIRQ, (0, 0, 1), True),
    ("virq, no such vcpu", VIRQ, (0, 0, 7), False),
    ("virq, no such group", VIRQ, (0, 1, 0), False),
    ("virq, global one", VIRQ, (3, 0, 0), False),
    ("virq, no such number", VIRQ, (24, 0, 0), False),
    ("type 0", 0, (1, False), False),
    ("type 5", 5, (1, False), False),
]


@pytest.mark.parametrize(
    ("kind", "parameters", "opens"), [row[1:] for row in OPENS], ids=[row[0] for row in OPENS]
)
def test_open(scene: Scene, kind: int, parameters: tuple[Any, ...], opens: bool) -> None:
    named = {
        "fixed": scene.fixed,
        "dom0's": scene.world.dom0.evtchn.alloc_unbound(scene.guest.domid),
    }
    before = scene.bound()
    view = scene.view()
    channel = view.open(kind, scene.call, *[named.get(one, one) for one in parameters])
    assert (channel is not None) == opens
    if channel is None:
        assert scene.bound() == before
        return
    assert lib.evtchn_is_masked(scene.guest.kernel, channel.port) == 1
    assert view.get_port(channel) == channel.port
    assert view.get_count(channel) == 0
    view.close(channel)
    scene.loop.run()
    assert scene.bound() == before


def test_a_port_that_has_a_channel_cannot_be_opened_again(scene: Scene) -> None:
    view = scene.view()
    assert view.open(FIXED, scene.call, scene.fixed, False) is not None
    assert view.open(FIXED, scene.call, scene.fixed, False) is None


def test_no_port_left_is_null(scene: Scene) -> None:
    view = scene.view()
    channels = []
    while (channel := view.open(UNBOUND, scene.call, 0, False)) is not None:
        channels.append(channel)
    assert len(channels) > 900
    assert view.open(VIRQ, scene.call, 0, 0, 0) is None


def test_a_virq_until_version_8_is_cpu_0s(scene: Scene) -> None:
    channel = scene.view(8).open(VIRQ, scene.call, VIRQ_TIMER)
    assert (channel.vcpu, channel.virq, channel.auto_mask) == (0, VIRQ_TIMER, False)


def test_a_virq_of_another_cpu_is_delivered_there(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(VIRQ, scene.call, VIRQ_TIMER, 0, 1)
    assert channel.vcpu == 1
    view.unmask(channel, False, False)
    scene.guest.evtchn.raise_virq(VIRQ_TIMER, 1)
    scene.loop.run()
    assert scene.ran == ["called"]


def test_without_vectors_only_cpu_0_has_channels(world: World) -> None:
    scene = Scene(world, fifo=False, vectors=False)
    view = scene.view()
    assert view.open(VIRQ, scene.call, VIRQ_TIMER, 0, 1) is None
    channel = view.open(UNBOUND, scene.call, 0, False)
    with pytest.raises(NtStatusError) as caught:
        view.bind(channel, 0, 1)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED
    view.bind(channel, 0, 0)


# Unmask: (version, arguments, cpu of the caller, pending, auto-mask) -> answer, bits after

UNMASKS = [
    # version, arguments, cpu, pending, auto, answer, masked, still pending, calls
    (9, (False, False), None, False, False, False, 0, 0, 0),
    (9, (False, False), None, True, False, True, 0, 0, 0),
    (9, (False, False), None, True, True, True, 1, 0, 0),
    (9, (True, False), None, True, False, False, 0, 0, 1),
    (9, (False, True), None, True, False, False, 0, 0, 1),
    (9, (False, True), None, True, True, False, 1, 0, 1),
    (9, (False, False), 0, True, False, True, 0, 0, 0),
    (9, (False, False), 1, True, False, False, 0, 0, 1),
    (8, (False, False), None, True, False, True, 0, 0, 0),
    (7, (False,), None, True, False, None, 0, 0, 1),
    (5, (False,), None, True, True, None, 1, 0, 1),
    (5, (True,), None, False, True, None, 0, 0, 0),
]


@pytest.mark.parametrize(
    ("version", "arguments", "cpu", "pending", "auto", "answer", "masked", "left", "calls"), UNMASKS
)
def test_unmask(
    scene: Scene,
    version: int,
    arguments: tuple[bool, ...],
    cpu: int | None,
    pending: bool,
    auto: bool,
    answer: bool | None,
    masked: int,
    left: int,
    calls: int,
) -> None:
    view = scene.view(version)
    channel = view.open(UNBOUND, scene.call, 0, auto)
    far = scene.far(channel)
    if pending:
        scene.send(far)
    keywords = {} if cpu is None else {"cpu": cpu}
    assert view.unmask(channel, *arguments, **keywords) is answer
    scene.loop.run()
    kernel = scene.guest.kernel
    assert lib.evtchn_is_masked(kernel, channel.port) == masked
    assert lib.evtchn_is_pending(kernel, channel.port) == left
    assert len(scene.ran) == calls
    assert channel.count == calls  # what the caller is told of is not counted
    if not masked:
        scene.send(far)
        scene.loop.run()
        assert len(scene.ran) == calls + 1


def test_an_unmask_in_the_callback_delivers_what_came_meanwhile(scene: Scene) -> None:
    view = scene.view()
    answers: list[bool] = []

    def callback() -> None:
        if len(answers) < 3:
            scene.send(far)
            answers.append(view.unmask(channel, True, False))

    channel = view.open(UNBOUND, callback, 0, True)
    far = scene.far(channel)
    view.unmask(channel, False, False)
    scene.send(far)
    scene.loop.run()
    assert answers == [False] * 3
    assert view.get_count(channel) == 4


# Trigger


def test_a_trigger_is_drained_like_an_event_and_coalesces(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, True)
    view.unmask(channel, False, False)
    for _ in range(3):
        view.trigger(channel)
    assert scene.ran == []
    scene.loop.run()
    assert scene.ran == ["called"]
    assert view.get_count(channel) == 1
    assert lib.evtchn_is_masked(scene.guest.kernel, channel.port) == 1
    view.trigger(channel)  # also of one that is masked
    scene.loop.run()
    assert view.get_count(channel) == 2


@pytest.mark.parametrize("seed", range(6))
def test_a_trigger_and_an_event_are_one_or_two_deliveries_and_none_is_lost(
    world: World, seed: int
) -> None:
    world.loop.chooser = type(world.loop.chooser)(seed)  # type: ignore[call-arg]
    scene = Scene(world, fifo=False)
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    far = scene.far(channel)
    view.unmask(channel, False, False)
    view.trigger(channel)
    scene.send(far)
    scene.loop.run()
    assert view.get_count(channel) == 1  # whoever is first takes the other along


def test_a_trigger_is_not_delivered_after_the_close(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.trigger(channel)
    view.close(channel)
    scene.loop.run()
    assert scene.ran == []


# Send, Bind


def test_send_reaches_the_other_end_and_fails_silently(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.send(channel)  # nobody is there yet
    far = scene.far(channel)
    dom0 = scene.world.dom0
    lib.evtchn_clear_pending(dom0.kernel, far)
    view.send(channel)
    assert lib.evtchn_is_pending(dom0.kernel, far) == 1
    virq = view.open(VIRQ, scene.call, VIRQ_TIMER, 0, 0)
    view.send(virq)  # EINVAL of Xen


def test_bind_moves_later_events(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    far = scene.far(channel)
    view.bind(channel, 0, 1)
    view.bind(channel, 0, 1)
    assert (channel.vcpu, scene.guest.evtchn.status(channel.port).vcpu) == (1, 1)
    view.unmask(channel, False, True)
    scene.loop.run()
    scene.send(far)
    assert lib.evtchn_upcall_pending(scene.guest.kernel, 1) == 1
    scene.loop.run()
    assert "called" in scene.ran
    per_vcpu = view.open(VIRQ, scene.call, VIRQ_TIMER, 0, 0)
    with pytest.raises(NtStatusError) as caught:
        view.bind(per_vcpu, 0, 1)
    assert caught.value.status is NTSTATUS.INVALID_PARAMETER


# Wait


def test_wait_for_a_count_that_is_there_does_not_run_the_loop(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    now = scene.loop.now
    assert view.wait(channel, 0) is NTSTATUS.SUCCESS
    assert view.wait(channel, 1, 0) is NTSTATUS.TIMEOUT
    assert view.wait(channel, 0, 0) is NTSTATUS.SUCCESS
    assert scene.loop.now == now


@pytest.mark.parametrize("absolute", [False, True])
def test_wait_ends_at_its_timeout(scene: Scene, absolute: bool) -> None:
    view = scene.view(7)
    channel = view.open(UNBOUND, scene.call, 0, False)
    start = scene.loop.now
    timeout = scene.shared_info.get_time()[0] + 20_000_000 if absolute else -20_000_000
    assert view.wait(channel, 1, timeout) is NTSTATUS.TIMEOUT
    assert scene.loop.now - start == pytest.approx(2 * NS_PER_S, abs=1000)
    assert view.wait(channel, 1, 1) is NTSTATUS.TIMEOUT  # in 1601
    assert len(scene.evtchn._waits) == 0


def test_wait_ends_with_the_delivery(scene: Scene) -> None:
    view = scene.view(7)
    channel = view.open(UNBOUND, scene.call, 0, False)
    far = scene.far(channel)
    view.unmask(channel, False)
    dom0 = scene.world.dom0
    task = dom0.task("sender", lambda: scene.send(far))
    alarm = dom0.timer(task)
    alarm.arm(NS_PER_S)
    assert view.wait(channel, view.get_count(channel) + 1, -50_000_000) is NTSTATUS.SUCCESS
    assert scene.loop.now < 2 * NS_PER_S
    assert channel.callback == scene.call
    assert scene.ran == ["called"]


@pytest.mark.parametrize(
    ("count", "wanted", "status"),
    [
        (0, 0xFFFF_FFFF, NTSTATUS.SUCCESS),
        (0xFFFF_FFFF, 0, NTSTATUS.TIMEOUT),
        (0xFFFF_FFFF, 0xFFFF_FFFF, NTSTATUS.SUCCESS),
        (5, 5 + 0x7FFF_FFFF, NTSTATUS.TIMEOUT),
    ],
)
def test_wait_compares_counts_that_wrap(
    scene: Scene, count: int, wanted: int, status: NTSTATUS
) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    channel.count = count
    assert view.wait(channel, wanted, 0) is status


def test_wait_until_version_6_misses_what_came_before(scene: Scene) -> None:
    view = scene.view(6)
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.unmask(channel, False)
    view.trigger(channel)
    scene.loop.run()
    assert channel.count == 1
    assert view.wait(channel, -10) is NTSTATUS.TIMEOUT
    view.trigger(channel)
    assert view.wait(channel, None) is NTSTATUS.SUCCESS


def test_wait_for_ever_says_when_nothing_is_left_to_run(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    with pytest.raises(
        LocalProtocolError,
        match=rf"^nothing is left to run, and the channel of port {channel.port} is at 0 of 3$",
    ):
        view.wait(channel, 3)
    assert len(scene.evtchn._waits) == 0
    assert channel.callback == scene.call


def test_a_handler_waits_by_a_task(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    far = scene.far(channel)
    view.unmask(channel, False, False)
    caught: list[str] = []

    def handler() -> None:
        try:
            view.wait(channel, 2)
        except LocalProtocolError as error:
            caught.append(str(error))

    scene.guest.task("handler", handler).wake()
    scene.loop.run()
    assert caught[0].startswith("run() inside a handler")
    woken: list[int] = []
    wake = scene.guest.task("waiter", lambda: woken.append(channel.count))
    two = scene.evtchn.wait(channel, 2, None, wake)
    three = scene.evtchn.wait(channel, 3, None, wake)
    for _ in range(2):
        assert two.status is NTSTATUS.PENDING
        scene.send(far)
        scene.loop.run()
    assert (two.status, three.status, woken) == (NTSTATUS.SUCCESS, NTSTATUS.PENDING, [2])
    view.close(channel)
    scene.loop.run()
    assert (three.status, woken) == (NTSTATUS.CANCELLED, [2, 2])
    assert channel.callback == scene.call


# Close, handles, leftovers

USES: list[Callable[[InterfaceVersion, Any], object]] = [
    lambda view, channel: view.bind(channel, 0, 0),
    lambda view, channel: view.unmask(channel, False, False),
    lambda view, channel: view.send(channel),
    lambda view, channel: view.trigger(channel),
    lambda view, channel: view.get_count(channel),
    lambda view, channel: view.wait(channel, 0),
    lambda view, channel: view.get_port(channel),
    lambda view, channel: view.close(channel),
]


@pytest.mark.parametrize("use", USES)
def test_a_closed_handle_is_refused(
    scene: Scene, use: Callable[[InterfaceVersion, Any], object]
) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.close(channel)
    with pytest.raises(
        LocalProtocolError, match=rf"^the channel of port {channel.port} is closed$"
    ):
        use(view, channel)


@pytest.mark.parametrize("name", V5)
def test_nothing_is_called_before_acquire_and_after_release(scene: Scene, name: str) -> None:
    view = query_interface([scene.evtchn], EvtchnInterface.GUID, 9)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=f"^EVTCHN {name}: it is not acquired$"):
            getattr(view, name)
        view.acquire()
        view.release()


def test_the_last_release_names_and_closes_what_is_open(scene: Scene) -> None:
    before = scene.bound()
    view = scene.view()
    view.open(UNBOUND, scene.call, 0, False)
    view.open(VIRQ, scene.call, VIRQ_TIMER, 0, 0)
    with pytest.raises(
        LocalProtocolError,
        match=r"^EVTCHN is released with a UNBOUND channel of port \d+, a VIRQ channel of port \d+$",
    ):
        view.release()
    # After FIFO the reset took the port that the test itself bound, too.
    assert scene.bound() == (0 if scene.evtchn.fifo else before)
    assert not scene.guest.evtchn.fifo
    assert scene.guest.hvm_param(0) == 0
    assert scene.suspend.references == scene.shared_info.references == 0
    again = scene.view()
    assert scene.evtchn.is_fifo == scene.evtchn.fifo == scene.guest.evtchn.fifo
    assert scene.guest.hvm_param(0) == 24
    channel = again.open(UNBOUND, scene.call, 0, False)
    again.unmask(channel, False, False)
    scene.send(scene.far(channel))
    scene.loop.run()
    assert len(scene.ran) >= 1


# suspend


def test_after_a_suspend_channels_are_inactive_and_freed_without_a_hypercall(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.unmask(channel, False, False)
    scene.suspend.trigger()
    scene.resume()
    assert not channel.active
    assert view.unmask(channel, False, False) is False
    view.send(channel)
    view.bind(channel, 0, 1)
    assert channel.vcpu == 0
    with pytest.raises(LocalProtocolError, match="is not active$"):
        view.get_port(channel)
    view.trigger(channel)  # it is not refused
    scene.loop.run()
    assert (scene.ran, view.get_count(channel)) == (["called"], 1)
    new = view.open(UNBOUND, scene.call, 0, False)
    before = scene.bound()
    view.close(channel)
    scene.loop.run()
    assert scene.bound() == before
    view.unmask(new, False, False)
    scene.send(scene.far(new))
    scene.loop.run()
    assert view.get_count(new) == 1
    assert scene.evtchn.is_fifo == scene.guest.evtchn.fifo == scene.evtchn.fifo


def test_a_cancelled_suspend_leaves_channels_alone(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    far = scene.far(channel)
    view.unmask(channel, False, False)
    scene.suspend.trigger()
    scene.send(far)
    scene.resume(1)
    assert (channel.active, view.get_count(channel), scene.ran) == (True, 1, ["called"])


def test_a_port_that_was_about_to_be_closed_is_not_closed_in_the_new_domain(scene: Scene) -> None:
    view = scene.view()
    channel = view.open(UNBOUND, scene.call, 0, False)
    view.close(channel)
    scene.suspend.trigger()
    scene.resume()
    again = [view.open(UNBOUND, scene.call, 0, False) for _ in range(3)]
    scene.loop.run()
    for one in again:
        assert scene.guest.evtchn.status(one.port).status == 1
