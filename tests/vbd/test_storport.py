"""The port driver's side: limits, the queue of a disk, and requests that are no commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vbd.rawback import OKAY, SYNC10, Scene, read10, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import LocalProtocolError
from xenpv.vbd import adapter, storport
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.vbd.storport import CONFIGURATION, Capabilities, SpReturn, StorPnpAction

PENDING, SUCCESS, ERROR = SrbStatus.PENDING, SrbStatus.SUCCESS, SrbStatus.ERROR
BUSY = SrbStatus.BUSY
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))


@pytest.fixture
def on() -> Iterator[Scene]:
    with scene() as made:
        yield made


def test_the_numbers_of_the_adapter() -> None:
    assert (CONFIGURATION.number_of_buses, CONFIGURATION.maximum_number_of_targets) == (1, 255)
    assert CONFIGURATION.maximum_number_of_logical_units == 1
    assert CONFIGURATION.maximum_transfer_length == 4194304
    assert (CONFIGURATION.number_of_physical_breaks, CONFIGURATION.alignment_mask) == (1023, 0)
    assert CONFIGURATION.full_duplex
    assert CONFIGURATION.auto_request_sense
    assert storport.QUEUE_DEPTH == 254
    assert [*SpReturn] == [0, 1, 2, 3]
    assert SpReturn.BAD_CONFIG == 3
    assert adapter.Vbd  # the adapter that these are of


def test_a_buffer_of_more_than_a_transfer_is_refused(on: Scene) -> None:
    pfn = on.domain.pages.alloc(1025)
    most = Srb(cdb=read10(0, 1), data=[(pfn, 0, 4 << 20)])
    on.adapter.submit(most)
    with pytest.raises(LocalProtocolError, match="4194305 bytes: at most 4194304"):
        on.adapter.submit(Srb(cdb=read10(0, 1), data=[(pfn, 0, (4 << 20) + 1)]))
    pieces = [(pfn + n % 1024, 0, 512) for n in range(1025)]
    with pytest.raises(LocalProtocolError, match="1025 pieces: at most 1024"):
        on.adapter.submit(Srb(cdb=read10(0, 1), data=pieces))
    on.adapter.submit(Srb(cdb=read10(0, 1), data=pieces[:1024]))
    on.xen.run()
    assert len(on.back.taken()) == 2


@pytest.mark.parametrize("offset", [0, 1, 3, 511, 4095])
def test_a_buffer_may_begin_anywhere(on: Scene, offset: int) -> None:
    pfn = on.domain.pages.alloc(2)
    srb = on.submit(read10(0, 1), [(pfn, offset, 512)])
    (slot,) = on.back.taken()
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS


# the queue


def start(on: Scene, count: int) -> list[Srb]:
    pfn = on.page()
    srbs = [Srb(cdb=read10(n, 1), data=[(pfn, 0, 512)]) for n in range(count)]
    for srb in srbs:
        on.adapter.submit(srb)
    on.xen.run()
    return srbs


def test_no_more_than_254_srbs_are_with_the_miniport(on: Scene) -> None:
    srbs = start(on, 300)
    ring, queue = on.frontend.rings[0], on.target.queue
    assert (queue.outstanding, len(queue.waiting)) == (254, 46)
    assert len(ring.queue) + len(ring.prepared) + len(ring.submitted) == 254
    answered = 0
    while slots := on.back.taken():
        on.back.answer(*[(slot.id, OKAY) for slot in slots])
        answered += len(slots)
    assert answered == 300
    assert (queue.outstanding, len(queue.waiting)) == (0, 0)
    assert all(srb.srb_status is SUCCESS for srb in srbs)


def test_what_waits_goes_out_in_order_and_others_wait_behind_it(on: Scene) -> None:
    on.target.queue.depth = 1
    first, second = start(on, 2)
    inquiry = on.submit(INQUIRY, [(on.page(), 0, 36)])
    assert (inquiry.srb_status, len(on.back.taken())) == (PENDING, 1)
    flush = on.submit(b"", function=SrbFunction.FLUSH)  # waits for the ring, not in the queue
    assert flush.srb_status is PENDING
    on.back.answer((1, OKAY))
    assert (first.srb_status, second.srb_status) == (SUCCESS, PENDING)
    assert inquiry.srb_status is PENDING
    on.back.answer((on.back.taken()[0].id, OKAY))
    assert second.srb_status is SUCCESS
    assert inquiry.srb_status is SUCCESS
    assert flush.srb_status is SUCCESS


def test_an_inquiry_sets_the_depth_anew(on: Scene) -> None:
    on.target.queue.depth = 3
    on.submit(bytes(6))
    assert on.target.queue.depth == 3
    on.submit(INQUIRY, [(on.page(), 0, 36)])
    assert on.target.queue.depth == 254


def test_what_waits_runs_when_a_reset_is_over(on: Scene) -> None:
    on.target.queue.depth = 2
    srbs = start(on, 4)
    on.back.taken()
    reset = on.submit(b"", function=SrbFunction.RESET_DEVICE)
    assert reset.srb_status is SUCCESS
    assert [srb.srb_status for srb in srbs] == [ERROR, ERROR, PENDING, PENDING]
    slots = on.back.taken()
    assert [slot.sector for slot in slots] == [2, 3]
    on.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert [srb.srb_status for srb in srbs[2:]] == [SUCCESS, SUCCESS]


def test_what_waits_learns_that_the_disk_went(on: Scene) -> None:
    on.target.queue.depth = 1
    srbs = start(on, 3)
    on.target.vanish()
    on.xen.run()
    assert [srb.srb_status for srb in srbs] == [ERROR, SrbStatus.NO_DEVICE, SrbStatus.NO_DEVICE]


def test_what_waits_fails_when_the_backend_breaks_the_protocol(on: Scene) -> None:
    on.target.queue.depth = 1
    srbs = start(on, 3)
    on.back.taken()
    on.back.answer((12345, OKAY))
    assert on.target.broken
    assert [srb.srb_status for srb in srbs] == [ERROR] * 3


def test_what_waits_fails_when_the_disk_is_powered_down(on: Scene) -> None:
    on.target.queue.depth = 1
    srbs = start(on, 3)
    on.target.stop()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSED
    assert [srb.srb_status for srb in srbs] == [ERROR] * 3


def test_tags_are_1_to_254_in_turn(on: Scene) -> None:
    tags = [on.target.queue.tag() for _ in range(256)]
    assert tags == [*range(1, 255), 1, 2]


RINGS = [
    # queue tag, processor, ring of 2
    (0, 0, 0), (0, 1, 1), (0, 2, 0), (1, 0, 1), (2, 1, 0), (3, 0, 1), (254, 1, 0), (255, 0, 1),
]  # fmt: skip


@pytest.mark.parametrize(("tag", "processor", "ring"), RINGS)
def test_a_ring_is_chosen_by_tag_else_by_processor(tag: int, processor: int, ring: int) -> None:
    with scene(early={"multi-queue-max-queues": "2"}, vcpus=2) as on:
        data = [(on.page(), 0, 512)]
        on.submit(read10(0, 1), data, queue_tag=tag, processor=processor)
        assert [len(on.back.taken(queue)) for queue in (0, 1)] == [1 - ring, ring]


# requests that are no commands


@pytest.mark.parametrize("removable", [False, True])
def test_capabilities(removable: bool) -> None:
    with scene() as on:
        on.target.backend.removable = removable
        srb = on.submit(b"", function=SrbFunction.PNP, pnp_action=StorPnpAction.QUERY_CAPABILITIES)
        assert srb.srb_status is SUCCESS
        assert srb.capabilities == Capabilities(
            removable=removable,
            eject_supported=removable,
            surprise_removal_ok=True,
            unique_id=True,
        )
        assert on.adapter.disks()[0].capabilities() == srb.capabilities


@pytest.mark.parametrize("action", [one for one in StorPnpAction if one != 9] + [0x99])
def test_other_pnp_actions_succeed_without_an_answer(on: Scene, action: int) -> None:
    srb = on.submit(b"", function=SrbFunction.PNP, pnp_action=action)
    assert (srb.srb_status, srb.capabilities) == (SUCCESS, None)
    nobody = on.submit(b"", function=SrbFunction.PNP, pnp_action=action, target_id=7)
    assert nobody.srb_status is SUCCESS


def test_a_bus_reset_ends_when_every_target_has() -> None:
    with scene(disks=2) as on:
        idle, busy = on.adapter.targets.values()
        srb = on.submit(read10(0, 1), [(on.page(), 0, 512)], target_id=busy.target_id)
        reset = Srb(function=SrbFunction.RESET_BUS)
        on.adapter.submit(reset)
        assert (idle.state, busy.state) == (FrontendState.ENABLED, FrontendState.CONNECTED)
        assert reset.srb_status is PENDING
        on.xen.run()
        assert (reset.srb_status, srb.srb_status) == (SUCCESS, ERROR)
        assert busy.state is FrontendState.ENABLED


def test_a_bus_without_targets_is_reset_at_once(on: Scene) -> None:
    on.adapter.targets.clear()
    assert on.submit(b"", function=SrbFunction.RESET_BUS).srb_status is SUCCESS


@pytest.mark.parametrize("function", [SrbFunction.FLUSH, SrbFunction.SHUTDOWN])
@pytest.mark.parametrize(
    ("quirks", "scsi_status"), [((), 0x00), (("scsistatus-40-on-success",), 0x40)]
)
def test_a_drain_waits_for_its_own_ring_and_sends_nothing(
    function: SrbFunction, quirks: tuple[str, ...], scsi_status: int
) -> None:
    early = {"multi-queue-max-queues": "2"}
    with scene(early=early, vcpus=2, vbd=Parameters(quirks=quirks)) as on:
        on.submit(read10(0, 1), [(on.page(), 0, 512)], queue_tag=1)
        other = on.submit(b"", function=function, queue_tag=2)
        assert (other.srb_status, other.scsi_status) == (SUCCESS, scsi_status)
        drain = on.submit(b"", function=function, queue_tag=1)
        assert drain.srb_status is PENDING
        (slot,) = on.back.taken(1)
        on.back.answer((slot.id, OKAY), queue=1)
        assert (drain.srb_status, drain.scsi_status) == (SUCCESS, scsi_status)
        assert on.back.taken(0) == on.back.taken(1) == []


def test_a_drain_of_a_disabled_ring_is_busy(on: Scene) -> None:
    on.submit(read10(0, 1), [(on.page(), 0, 512)])
    reset = Srb(function=SrbFunction.RESET_DEVICE)
    on.adapter.submit(reset)
    for function in (SrbFunction.FLUSH, SrbFunction.SHUTDOWN):
        srb = Srb(function=function)
        on.adapter.submit(srb)
        assert (srb.srb_status, srb.scsi_status) == (BUSY, ScsiStatus.GOOD)
    refused = Srb(cdb=SYNC10)
    on.adapter.submit(refused)
    assert (refused.srb_status, refused.scsi_status) == (ERROR, ScsiStatus.GOOD)
    on.xen.run()
    assert reset.srb_status is SUCCESS


def test_a_drain_outlives_a_reset(on: Scene) -> None:
    on.submit(read10(0, 1), [(on.page(), 0, 512)])
    drain = on.submit(b"", function=SrbFunction.FLUSH)
    assert drain.srb_status is PENDING
    assert on.submit(b"", function=SrbFunction.RESET_DEVICE).srb_status is SUCCESS
    assert drain.srb_status is SUCCESS


def test_resets_of_one_disk_end_together(on: Scene) -> None:
    on.submit(read10(0, 1), [(on.page(), 0, 512)])
    resets = [Srb(function=SrbFunction.RESET_DEVICE) for _ in range(3)]
    for reset in resets:
        on.adapter.submit(reset)
    on.xen.run()
    assert [reset.srb_status for reset in resets] == [SUCCESS] * 3


def stuck(on: Scene) -> list[Srb]:
    """Three SRBs, of which one gets to the miniport; the backend will not close."""
    on.back.answers |= {State.CLOSING: State.CONNECTED, State.CLOSED: State.CONNECTED}
    on.target.queue.depth = 1
    return start(on, 3)


def test_what_waits_learns_that_the_disk_went_though_its_backend_does_not_close(
    on: Scene,
) -> None:
    srbs = stuck(on)
    on.target.vanish()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSING
    assert [srb.srb_status for srb in srbs] == [ERROR, SrbStatus.NO_DEVICE, SrbStatus.NO_DEVICE]


def test_what_comes_while_others_wait_for_the_rings_waits_behind_them(on: Scene) -> None:
    srbs = stuck(on)
    on.target.stop()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSING
    assert on.target.queue.outstanding == 0
    late = on.submit(bytes(6))
    every = [*srbs, late]
    assert [srb.srb_status for srb in every] == [ERROR, PENDING, PENDING, PENDING]
    on.back.answers[State.CLOSED] = State.CLOSED
    on.back.switch(State.CLOSED)
    assert [srb.srb_status for srb in every] == [ERROR, ERROR, ERROR, SUCCESS]
