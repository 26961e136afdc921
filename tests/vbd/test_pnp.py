"""A target under the PnP manager: each request at each state, eject and veto, usage of the disk."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import DEVID, OKAY, SYNC10, Scene, read10, scene
from tests.vbd.test_frontend import FRONT, unplug
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.devicetree import Irp
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.pnpstate import PnpState
from xenpv.vbd.backendwatch import UNPLUG_FAILED
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.srb import SrbStatus
from xenpv.vbd.usage import UsageType

P, S, SP = PnpState.PRESENT, PnpState.STARTED, PnpState.STOP_PENDING
ST, RP, SR = PnpState.STOPPED, PnpState.REMOVE_PENDING, PnpState.SURPRISE_REMOVE_PENDING
D = PnpState.DELETED
STATES = (P, S, SP, ST, RP, SR)

# What a target is brought to a state by, from PRESENT.
WAYS = {
    P: (),
    S: (Irp.START_DEVICE,),
    SP: (Irp.START_DEVICE, Irp.QUERY_STOP_DEVICE),
    ST: (Irp.START_DEVICE, Irp.QUERY_STOP_DEVICE, Irp.STOP_DEVICE),
    RP: (Irp.START_DEVICE, Irp.QUERY_REMOVE_DEVICE),
    SR: (Irp.START_DEVICE, Irp.SURPRISE_REMOVAL),
    D: (Irp.START_DEVICE, Irp.REMOVE_DEVICE),
}
# request: the state after it, from each of STATES in their order
TABLE = {
    Irp.START_DEVICE: (S, S, S, S, S, S),
    Irp.QUERY_STOP_DEVICE: (SP, SP, SP, SP, SP, SP),
    Irp.CANCEL_STOP_DEVICE: (P, S, S, ST, RP, SR),
    Irp.STOP_DEVICE: (ST, ST, ST, ST, ST, ST),
    Irp.QUERY_REMOVE_DEVICE: (RP, RP, RP, RP, RP, RP),
    Irp.CANCEL_REMOVE_DEVICE: (P, S, SP, ST, S, SR),
    Irp.SURPRISE_REMOVAL: (SR, SR, SR, SR, SR, SR),
    Irp.REMOVE_DEVICE: (D, D, D, D, D, D),
    Irp.EJECT: (D, D, D, D, D, D),
}
# request: whether the frontend is up after it, from each of STATES; None: as before
UP = {
    Irp.START_DEVICE: True,
    Irp.STOP_DEVICE: False,
    Irp.REMOVE_DEVICE: False,
    Irp.EJECT: False,
}
ROWS = [(irp, state, TABLE[irp][at]) for irp in TABLE for at, state in enumerate(STATES)]


def ask(on: Scene, irp: Irp) -> NTSTATUS:
    status = on.target.pnp.request(irp)
    on.xen.run()
    return status


def bring(on: Scene, state: PnpState) -> None:
    target = on.target
    target.pnp.life.state = P  # as before the PnP manager came to know it
    for irp in WAYS[state]:
        target.pnp.request(irp)
        on.xen.run()
    assert target.pnp.state is state


@pytest.mark.parametrize(
    ("irp", "state", "after"), ROWS, ids=[f"{irp.name}-{state.value}" for irp, state, _ in ROWS]
)
def test_a_request(irp: Irp, state: PnpState, after: PnpState) -> None:
    with scene() as on:
        target = on.target
        bring(on, state)
        before = target.state is FrontendState.ENABLED
        assert before is (state is not ST)
        status = target.pnp.request(irp)
        closes = UP.get(irp) is False and before
        assert status is (NTSTATUS.PENDING if closes else NTSTATUS.SUCCESS)
        on.xen.run()
        assert target.pnp.state is after
        assert (target.state is FrontendState.ENABLED) is UP.get(irp, before)
        assert target.missing is (after is D)
        srb = on.submit(SYNC10)
        if target.missing:
            assert srb.srb_status is SrbStatus.NO_DEVICE
        elif not UP.get(irp, before):
            assert srb.srb_status is SrbStatus.ERROR


@pytest.mark.parametrize("irp", list(Irp))
def test_a_deleted_target_answers_as_one(irp: Irp) -> None:
    with scene() as on:
        bring(on, D)
        gone = irp in (Irp.SURPRISE_REMOVAL, Irp.REMOVE_DEVICE)
        assert ask(on, irp) is (NTSTATUS.SUCCESS if gone else NTSTATUS.NO_SUCH_DEVICE)
        assert on.target.pnp.state is D
        assert on.target.state is FrontendState.CLOSED


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("seed", range(6))
def test_a_new_disk_connects_once_whenever_the_pnp_manager_starts_it(
    personality: str, seed: int
) -> None:
    with scene(personality, seed=seed) as on:
        assert on.target.pnp.state is S
        closes = [State.CLOSING, State.CLOSED, State.INITIALISING]
        walk = closes if personality == "windows" else []
        assert on.back.states == [
            State.INITIALISING, *walk, State.INITIALISED, State.CONNECTED,
        ]  # fmt: skip


def test_a_request_waits_for_the_frontend_and_another_one_comes_too_early() -> None:
    with scene() as on:
        srb = on.submit(read10(0, 1), [(on.page(), 0, 512)])
        pnp = on.target.pnp
        assert pnp.request(Irp.STOP_DEVICE) is NTSTATUS.PENDING
        for irp in Irp:
            assert pnp.request(irp) is NTSTATUS.DEVICE_NOT_READY
        assert (pnp.state, srb.is_complete) == (S, False)
        (slot,) = on.back.taken()
        on.back.answer((slot.id, OKAY))
        on.xen.run()
        assert srb.srb_status is SrbStatus.SUCCESS, "there was time for it to end"
        assert (pnp.state, pnp.pending) == (ST, None)


def test_a_surprise_removal_leaves_the_backend_connected_until_the_remove() -> None:
    with scene() as on:
        ask(on, Irp.SURPRISE_REMOVAL)
        srb = on.submit(SYNC10)
        (slot,) = on.back.taken()
        on.back.answer((slot.id, OKAY))
        assert srb.srb_status is SrbStatus.SUCCESS
        assert on.back.states[-1] is State.CONNECTED
        ask(on, Irp.REMOVE_DEVICE)
        assert on.target.pnp.reason == "surprise remove"
        assert on.back.states[-1] is State.CLOSED


def test_the_adapter_stops_and_starts_its_children() -> None:
    with scene(disks=2) as on:
        on.adapter.stop()
        on.xen.run()
        assert [one.pnp.state for one in on.adapter.targets.values()] == [ST, ST]
        on.adapter.start()
        on.xen.run()
        assert [one.pnp.state for one in on.adapter.targets.values()] == [S, S]
        assert all(one.state is FrontendState.ENABLED for one in on.adapter.targets.values())


def test_a_stopped_target_stays_down_when_its_backend_moves_and_over_a_resume() -> None:
    with scene() as on:
        ask(on, Irp.STOP_DEVICE)
        on.back.device.write("online", "1")
        on.back.switch(State.INIT_WAIT)
        on.xen.run()
        on.adapter._resumed()
        on.xen.run()
        assert (on.target.state, on.target.pnp.state) == (FrontendState.CLOSED, ST)
        ask(on, Irp.START_DEVICE)
        assert on.target.state is FrontendState.ENABLED


def test_a_target_that_failed_connects_with_its_next_start() -> None:
    with scene(start=False) as on:
        on.back.answers = on.back.answers | {State.INITIALISING: State.CLOSING}
        on.xen.toolstack.unpause(on.guest.created)
        on.xen.run()
        assert (on.target.state, on.target.pnp.state) == (FrontendState.CLOSED, S)
        on.back.answers = on.back.answers | {State.INITIALISING: State.INIT_WAIT}
        on.back.disconnect()
        ask(on, Irp.START_DEVICE)
        assert on.target.state is FrontendState.ENABLED


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Irp)), st.booleans()), max_size=12))
def test_whatever_is_asked_in_any_order_srbs_end_and_states_agree(
    steps: list[tuple[Irp, bool]],
) -> None:
    with scene() as on:
        target = on.target
        srbs = []
        for irp, runs in steps:
            srbs.append(on.submit(read10(0, 1), [(on.page(), 0, 512)]))
            for slot in on.back.taken() if on.back.rings else []:
                on.back.answer((slot.id, OKAY))
            target.pnp.request(irp)
            if runs:
                on.xen.run()
        on.xen.run()
        on.adapter.stop()
        on.xen.run()
        assert all(srb.is_complete for srb in srbs)
        assert target.pnp.pending is None
        assert target.missing is (target.pnp.state is D)
        assert target.frontend.granter.granted == 0


# eject


def error(on: Scene) -> str | None:
    return on.xen.toolstack.xs.read(f"/local/domain/{on.guest.domid}/{FRONT}/error")


def test_an_eject_that_is_vetoed_is_told_and_may_be_asked_for_again() -> None:
    with scene() as on:
        on.target.handles += 1
        unplug(on)
        assert error(on) == UNPLUG_FAILED
        assert (on.target.pnp.state, on.target.state) == (S, FrontendState.ENABLED)
        assert not on.target.pnp.eject_requested
        on.target.handles -= 1
        on.back.device.write("online", "0")  # the toolstack tries again
        on.xen.run()
        assert (on.target.pnp.state, on.target.missing) == (D, True)
        assert on.target.pnp.reason == "ejected"


@pytest.mark.parametrize("kind", list(UsageType))
def test_a_disk_that_the_system_uses_is_not_let_go(kind: UsageType) -> None:
    with scene() as on:
        on.target.frontend.usage.notify(kind, True)
        unplug(on)
        assert error(on) == UNPLUG_FAILED
        assert not on.target.missing
        on.target.frontend.usage.notify(kind, False)
        on.back.device.write("online", "0")
        on.xen.run()
        assert on.target.missing


def test_an_eject_of_a_disk_that_pnp_does_not_know_waits_for_its_next_request() -> None:
    with scene() as on:
        pnp = on.target.pnp
        pnp.life.state = P
        pnp.request_eject()
        assert not pnp.eject_requested
        ask(on, Irp.QUERY_STOP_DEVICE)
        assert (pnp.state, pnp.reason) == (D, "ejected")


def test_a_cancelled_remove_that_nobody_asked_for_writes_no_error() -> None:
    with scene() as on:
        ask(on, Irp.QUERY_REMOVE_DEVICE)
        ask(on, Irp.CANCEL_REMOVE_DEVICE)
        assert error(on) is None


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({"online": "0", "state": "5"}, True),
        ({"online": "", "state": "5"}, True),
        ({"online": "2", "state": "5"}, True),
        ({"online": "0", "state": " +5"}, True),
        ({"online": "1", "state": "5"}, False),
        ({"online": "10", "state": "5"}, False),
        ({"online": "0", "state": "4"}, False),
        ({"online": "0", "state": "6"}, False),
        ({"online": "0", "state": "junk"}, False),
    ],
)
def test_an_eject_is_asked_for_by_both_keys_of_one_moment(
    keys: dict[str, str], asked: bool
) -> None:
    with scene() as on:
        xs, back = on.xen.toolstack.xs, on.back.device.path

        def put(t: int) -> None:
            for key, text in keys.items():
                xs.write(f"{back}/{key}", text, t)

        xs.transaction(put)
        on.xen.run()
        assert on.target.missing is asked
        ejected = xs.read(f"/local/domain/{on.guest.domid}/{FRONT}/ejected")
        assert ejected == ("1" if asked else None)


def test_ejected_is_written_once_however_often_it_is_asked_for() -> None:
    with scene() as on:
        on.target.handles += 1
        unplug(on)
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/{FRONT}"
        xs.write(f"{home}/ejected", "mine")
        on.back.device.write("online", "0")
        on.xen.run()
        assert xs.read(f"{home}/ejected") == "mine"


def test_an_eject_and_a_resize_during_a_reset_are_seen_after_it() -> None:
    from xenpv.vbd.srb import Srb, SrbFunction

    for late in ("resize", "eject"):
        with scene() as on:
            read = on.submit(read10(0, 1), [(on.page(), 0, 512)])
            reset = Srb(function=SrbFunction.RESET_DEVICE)
            on.adapter.submit(reset)
            assert on.target.state is FrontendState.CONNECTED
            if late == "resize":
                on.back.device.write("sectors", "77")
            else:
                on.back.device.write("online", "0")
                on.back.device.write("state", "5")
            on.xen.run()
            assert read.srb_status is SrbStatus.ERROR
            assert reset.srb_status is SrbStatus.SUCCESS
            if late == "resize":
                assert on.target.sectors == 77
            else:
                assert on.target.missing


# usage


def usage(on: Scene) -> dict[str, str | None]:
    xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/data/scsi/target/0"
    return {kind.value: xs.read(f"{home}/{kind.value}") for kind in UsageType}


def test_usage_is_a_count_for_the_driver_and_0_or_1_in_the_store() -> None:
    with scene() as on:
        notify = on.target.frontend.usage.notify
        assert usage(on) == {"paging": "0", "hibernation": "0", "dump": "0"}
        notify(UsageType.PAGING, True)
        notify(UsageType.PAGING, True)
        notify(UsageType.DUMP, True)
        assert usage(on) == {"paging": "1", "hibernation": "0", "dump": "1"}
        notify(UsageType.PAGING, False)
        assert usage(on)["paging"] == "1", "another page file is there"
        for _ in range(3):
            notify(UsageType.PAGING, False)
        assert usage(on)["paging"] == "0"
        notify(UsageType.PAGING, True)
        assert usage(on)["paging"] == "1", "what was taken back too often is forgotten"


def test_usage_is_written_again_with_every_connection() -> None:
    with scene() as on:
        on.target.frontend.usage.notify(UsageType.DUMP, True)
        ask(on, Irp.STOP_DEVICE)
        on.xen.toolstack.xs.rm(f"/local/domain/{on.guest.domid}/data/scsi")
        on.target.frontend.usage.notify(UsageType.HIBERNATION, True)
        assert usage(on) == dict.fromkeys(("paging", "hibernation", "dump")), "in D3 nothing"
        ask(on, Irp.START_DEVICE)
        assert usage(on) == {"paging": "0", "hibernation": "1", "dump": "1"}
        home = f"/local/domain/{on.guest.domid}/data/scsi/target/0"
        assert on.xen.toolstack.xs.read(f"{home}/device") == str(DEVID)


def test_linux_keeps_usage_to_itself() -> None:
    with scene("linux") as on:
        on.target.frontend.usage.notify(UsageType.PAGING, True)
        assert on.xen.toolstack.xs.directory(f"/local/domain/{on.guest.domid}/data") == []


def test_the_dump_says_what_a_target_is() -> None:
    keys = {"feature-discard": "1", "feature-barrier": "1"}
    with scene(early={"feature-max-indirect-segments": "32"}, keys=keys) as on:
        on.target.frontend.usage.notify(UsageType.DUMP, True)
        text = on.guest.dump()
        for line in (
            "ENABLED, target 0, started",
            "used for DUMP",
            "1024 sectors of 512 (512), info 0x0",
            "features: INDIRECT 32 BARRIER FLUSH DISCARD",
        ):
            assert f"{FRONT}: {line}\n" in text
        on.target.frontend.usage.notify(UsageType.DUMP, False)
        on.target.pnp.request(Irp.EJECT)
        on.xen.run()
        assert f"{FRONT}: CLOSED, target 0, deleted, MISSING: ejected\n" in on.guest.dump()
        assert "used for" not in on.guest.dump()
