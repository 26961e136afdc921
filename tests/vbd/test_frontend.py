"""The frontend's walk: its keys, its states, and what it does when the backend misbehaves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import ANSWERS, DEVID, OKAY, READ, SYNC10, Scene, read10, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import ABSENT, Goal
from xenpv.vbd.backend import Backend, number, page
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.personality import PERSONALITIES, Personality
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus

FRONT = f"device/vbd/{DEVID}"


def front_keys(on: Scene) -> dict[str, str]:
    """The frontend's directory without what the toolstack wrote."""
    xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/{FRONT}"
    toolstack = {"backend", "backend-id", "virtual-device", "device-type", "trusted"}
    names = [name for name in xs.directory(home) if name not in toolstack]
    return {name: xs.read(f"{home}/{name}") or "" for name in names}


def writes(on: Scene) -> list[tuple[str, str, bool]]:
    """Record each of the guest's writes below its frontend: key, value, in a transaction."""
    seen: list[tuple[str, str, bool]] = []

    class Sink:
        def store_op(
            self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
        ) -> None:
            path, _, value = payload.partition(b"\0")
            name = path.decode().removeprefix(f"{FRONT}/")
            if conn_domid == on.guest.domid and op == 11 and name != path.decode():
                assert error is None
                seen.append((name, value.decode(), tx_id != 0))

    on.xen.xenstored.trace = Sink()
    return seen


def test_windows_closes_before_it_connects() -> None:
    with scene("windows") as on:
        assert on.back.states == [
            State.INITIALISING,  # the toolstack's
            State.CLOSING,
            State.CLOSED,
            State.INITIALISING,
            State.INITIALISED,
            State.CONNECTED,
        ]
        assert on.target.state is FrontendState.ENABLED


def test_linux_connects_at_once() -> None:
    with scene("linux") as on:
        assert on.back.states == [State.INITIALISING, State.INITIALISED, State.CONNECTED]


def test_windows_writes_its_keys_in_the_drivers_order() -> None:
    early = {"max-ring-page-order": "4", "multi-queue-max-queues": "4"}
    with scene("windows", early=early, start=False) as on:
        seen = writes(on)
        on.guest.start()
        ring = on.frontend.rings[0]
        assert seen == [
            ("state", "5", False),
            ("state", "6", False),
            ("state", "1", False),
            ("event-channel", str(ring.port), True),
            ("ring-ref0", str(ring.grefs[0]), True),
            ("ring-ref1", str(ring.grefs[1]), True),
            ("multi-queue-num-queues", "1", True),
            ("ring-page-order", "1", True),
            ("protocol", "x86_64-abi", True),
            ("target-id", "0", True),
            ("feature-surprise-remove", "1", True),
            ("feature-online-resize", "1", True),
            ("state", "3", False),
            ("state", "4", False),
        ]


def test_linux_writes_a_single_page_and_its_protocol() -> None:
    early = {"max-ring-page-order": "4", "multi-queue-max-queues": "4"}
    with scene("linux", early=early) as on:
        ring = on.frontend.rings[0]
        assert front_keys(on) == {
            "state": "4",
            "event-channel": str(ring.port),
            "ring-ref": str(ring.grefs[0]),
            "protocol": "x86_64-abi",
            "feature-persistent": "0",
        }


@pytest.mark.parametrize(("personality", "vcpus", "queues"), [("windows", 4, 2), ("linux", 3, 3)])
def test_several_queues_have_directories_and_no_keys_above(
    personality: str, vcpus: int, queues: int
) -> None:
    with scene(personality, early={"multi-queue-max-queues": "8"}, vcpus=vcpus) as on:
        keys = front_keys(on)
        assert keys["multi-queue-num-queues"] == str(queues)
        assert "ring-ref" not in keys
        assert "event-channel" not in keys
        assert [name for name in keys if name.startswith("queue-")] == [
            f"queue-{n}" for n in range(queues)
        ]
        assert len(on.back.rings) == queues


def test_windows_tells_where_its_target_is() -> None:
    with scene("windows") as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}"
        keys = ("frontend", "device", "paging", "hibernation", "dump")
        values = {key: xs.read(f"{home}/data/scsi/target/0/{key}") for key in keys}
        zeros = {"paging": "0", "hibernation": "0", "dump": "0"}
        assert values == {"frontend": FRONT, "device": str(DEVID)} | zeros
        assert xs.read(f"{home}/feature/hotplug/vbd") == "1"
        drivers = [xs.read(f"{home}/drivers/{n}") for n in range(3)]
        assert "Xen_Project XENVBD 9.1.0.0 " in drivers


def test_linux_tells_nothing_of_that() -> None:
    with scene("linux") as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}"
        assert xs.directory(f"{home}/data") == []
        assert xs.directory(f"{home}/drivers") == []


def test_a_stale_ring_order_is_removed() -> None:
    with scene("windows", start=False) as on:
        home = f"/local/domain/{on.guest.domid}/{FRONT}"
        on.xen.toolstack.xs.write(f"{home}/ring-page-order", "2")
        on.guest.start()
        assert "ring-page-order" not in front_keys(on)
        assert on.back.rings[0].size == 32


@pytest.mark.parametrize(
    ("early", "pages", "queues"),
    [
        ({}, 1, 1),
        ({"max-ring-page-order": "4"}, 2, 1),
        ({"max-ring-page-order": "junk", "multi-queue-max-queues": "junk"}, 1, 1),
        ({"max-ring-page-order": "-1", "multi-queue-max-queues": "0"}, 2, 1),
        ({"max-ring-page-order": "9" * 40, "multi-queue-max-queues": "9" * 40}, 2, 2),
        ({"max-ring-page-order": "", "multi-queue-max-queues": ""}, 1, 1),
    ],
)
def test_the_backends_offers_are_bounded(early: dict[str, str], pages: int, queues: int) -> None:
    with scene("windows", early=early, vcpus=8) as on:
        assert len(on.frontend.rings) == queues
        assert {len(ring.grefs) for ring in on.frontend.rings} == {pages}


# every goal at every state


@pytest.mark.parametrize("personality", list(PERSONALITIES.values()), ids=lambda one: one.name)
@pytest.mark.parametrize("goal", list(Goal))
def test_every_goal_says_what_to_do_at_every_state(personality: Personality, goal: Goal) -> None:
    assert set(personality.table[goal]) == {*State, ABSENT}


@pytest.mark.parametrize("state", [State.INITIALISED, State.CLOSING, State.RECONFIGURING])
def test_a_backend_at_a_wrong_state_is_closed_again(state: State) -> None:
    with scene("windows", start=False) as on:
        on.back.answers = ANSWERS | {State.INITIALISING: state}
        on.xen.toolstack.unpause(on.guest.created)
        on.xen.run()
        assert on.target.state is FrontendState.CLOSED
        assert on.back.states[-1] is State.CLOSED
        assert on.frontend.granter.granted == 0


def test_a_backend_that_closes_instead_of_connecting_leaves_nothing_granted() -> None:
    with scene("windows", start=False) as on:
        on.back.answers = ANSWERS | {State.INITIALISED: State.CLOSING}
        on.xen.toolstack.unpause(on.guest.created)
        ports = on.domain.evtchn.bound()
        on.xen.run()
        assert on.target.state is FrontendState.CLOSED
        assert on.frontend.rings == []
        assert on.frontend.granter.granted == 0
        assert on.domain.evtchn.bound() == ports + 1  # of VIRQ_DEBUG


def test_a_backend_without_a_directory_makes_an_invalid_target() -> None:
    with scene("windows", start=False) as on:
        xs = on.xen.toolstack.xs
        xs.rm(f"/local/domain/{on.guest.domid}/{FRONT}/backend")
        on.xen.toolstack.unpause(on.guest.created)
        on.xen.run()
        assert on.target.state is FrontendState.INVALID


@pytest.mark.parametrize(
    "keys",
    [
        {"sector-size": "0"},
        {"sector-size": "511"},
        {"sector-size": "1000"},
        {"sector-size": "8192"},
        {"sector-size": "junk"},
        {"sectors": "99999999999999999999"},
    ],
    ids=str,
)
def test_a_disk_that_cannot_be_is_not_enabled(keys: dict[str, str]) -> None:
    with scene("windows", keys=keys, start=False) as on:
        on.xen.toolstack.unpause(on.guest.created)
        on.xen.run()
        assert on.target.state is FrontendState.CLOSED
        assert on.frontend.granter.granted == 0


# a connected frontend


def rewrite(on: Scene, **keys: str) -> None:
    """What an online resize is: new keys, then the state once more."""
    for key, value in keys.items():
        on.back.device.write(key.replace("_", "-"), value)
    on.back.device.write("state", "4")
    on.xen.run()


def test_a_resize_is_seen_without_a_word() -> None:
    with scene() as on:
        assert on.target.sectors == 1024
        rewrite(on, sectors="4096")
        assert on.target.sectors == 4096
        srb = on.submit(read10(4095, 1), [(on.page(), 0, 512)])
        (slot,) = on.back.taken()
        on.back.answer((slot.id, OKAY))
        assert srb.srb_status is SrbStatus.SUCCESS
        rewrite(on, sectors="10", info="4")
        assert (on.target.sectors, on.target.info) == (10, 4)
        assert on.submit(read10(10, 1), [(on.page(), 0, 512)]).srb_status is SrbStatus.ERROR


def test_a_resize_to_what_cannot_be_breaks_the_target() -> None:
    with scene() as on:
        srb = on.submit(SYNC10)
        rewrite(on, sector_size="17")
        assert "sector-size is 17" in on.target.broken
        assert srb.srb_status is SrbStatus.ERROR


def test_stop_closes_and_start_connects_again() -> None:
    with scene() as on:
        front = on.frontend.rings[0].front
        assert front is not None
        ports, pins = on.domain.evtchn.bound(), on.domain.gnttab.pinned()
        for _ in range(3):
            on.adapter.stop()
            assert not on.adapter.stopped
            on.xen.run()
            assert on.adapter.stopped
            assert on.target.state is FrontendState.CLOSED
            assert on.frontend.granter.granted == 0
            assert on.submit(SYNC10).srb_status is SrbStatus.ERROR
            on.adapter.start()
            on.xen.run()
            assert on.target.state is FrontendState.ENABLED
        assert on.domain.evtchn.bound() == ports
        assert on.domain.gnttab.pinned() == pins


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("in_flight", [0, 3])
def test_start_right_after_stop_closes_first(personality: str, in_flight: int) -> None:
    with scene(personality) as on:
        srbs = [on.submit(read10(n, 1), [(on.page(), 0, 512)]) for n in range(in_flight)]
        on.adapter.stop()
        on.adapter.start()
        on.xen.run()
        assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * in_flight
        assert on.target.state is FrontendState.ENABLED
        assert on.back.states[-1] is State.CONNECTED
        assert on.frontend.granter.granted == len(on.frontend.rings[0].grefs)
        srb = on.submit(SYNC10)
        (slot,) = on.back.taken()
        on.back.answer((slot.id, OKAY))
        assert srb.srb_status is SrbStatus.SUCCESS


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_broken_target_works_again_after_a_start(personality: str) -> None:
    with scene(personality) as on:
        on.back.store(8, 17)
        on.back.notify()
        assert on.target.broken
        on.target.start()
        on.xen.run()
        assert (on.target.broken, on.target.state) == ("", FrontendState.ENABLED)


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_an_old_ring_that_breaks_while_it_closes_does_not_break_the_next(personality: str) -> None:
    with scene(personality) as on:
        on.adapter._resumed()
        on.back.store(8, 17)
        on.back.notify()
        assert (on.target.broken, on.target.state) == ("", FrontendState.ENABLED)


def test_a_reset_mends_no_broken_target() -> None:
    with scene() as on:
        on.back.store(8, 17)
        on.back.notify()
        reset = Srb(function=SrbFunction.RESET_DEVICE)
        on.adapter.submit(reset)
        on.xen.run()
        assert reset.srb_status is SrbStatus.SUCCESS
        assert on.target.broken
        assert not on.frontend.rings[0].enabled
        assert on.submit(SYNC10).srb_status is SrbStatus.ERROR


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_stop_right_after_a_start_right_after_a_stop_is_a_stop(personality: str) -> None:
    with scene(personality) as on:
        on.adapter.stop()
        on.adapter.start()
        on.adapter.stop()
        on.xen.run()
        assert on.adapter.stopped
        assert on.target.state is FrontendState.CLOSED


def test_stop_with_requests_in_flight_ends_them_and_the_backend_may_still_answer() -> None:
    with scene() as on:
        srbs = [on.submit(read10(n, 1), [(on.page(), 0, 512)]) for n in range(3)]
        on.back.taken()
        on.adapter.stop()
        on.xen.run()
        assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * 3
        assert on.adapter.stopped
        assert on.frontend.granter.granted == 0


def test_a_ring_page_that_the_backend_keeps_is_not_used_again() -> None:
    with scene() as on:
        front = on.frontend.rings[0].front
        assert front is not None
        on.back.keeps = True
        on.target.stop()
        on.xen.run()
        assert on.target.state is FrontendState.CLOSED
        assert on.frontend.granter.granted == 1
        assert on.frontend.granter.holds(front.pfns[0], 1)
        on.back.disconnect()
        on.back.keeps = False
        on.target.start()
        on.xen.run()
        assert on.target.state is FrontendState.ENABLED
        on.target.stop()
        on.xen.run()
        assert on.frontend.granter.granted == 0


def unplug(on: Scene) -> None:
    """What the toolstack asks for, in one transaction."""
    xs, back = on.xen.toolstack.xs, on.back.device.path

    def ask(t: int) -> None:
        xs.write(f"{back}/online", "0", t)
        xs.write(f"{back}/state", "5", t)

    xs.transaction(ask)
    on.xen.run()


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_an_unplugged_disk_is_closed_and_gone(personality: str) -> None:
    with scene(personality) as on:
        srb = on.submit(read10(0, 1), [(on.page(), 0, 512)])
        target = on.target
        unplug(on)
        assert srb.srb_status is SrbStatus.ERROR
        assert target.missing
        assert target.state is FrontendState.CLOSED
        assert on.back.states[-1] is State.CLOSED
        assert on.submit(SYNC10).srb_status is SrbStatus.NO_DEVICE
        assert on.adapter.disks() == []
        assert (front_keys(on).get("ejected") == "1") == (personality == "windows")
        on.xen.toolstack.xs.rm(f"/local/domain/{on.guest.domid}/{FRONT}")
        on.xen.run()
        assert on.adapter.targets == {}


def test_windows_ignores_a_backend_that_closes_while_it_is_online() -> None:
    with scene("windows") as on:
        on.back.switch(State.CLOSING)
        assert on.target.state is FrontendState.ENABLED


def test_linux_closes_with_its_backend() -> None:
    with scene("linux") as on:
        on.back.switch(State.CLOSING)
        assert on.target.state is FrontendState.CLOSED
        assert on.back.states[-1] is State.CLOSED


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_vanished_device_is_deleted_with_all_it_had(personality: str) -> None:
    with scene(personality) as on:
        bus = on.guest.bus
        assert bus is not None
        watches = len(bus.store.watches())
        permitted = bus.gnttab.permitted
        target, rings = on.target, len(on.frontend.rings[0].grefs)
        srb = on.submit(read10(0, 1), [(on.page(), 0, 512)])
        on.back.taken()
        xs = on.xen.toolstack.xs
        on.back.disconnect()
        xs.rm(f"/local/domain/{on.guest.domid}/{FRONT}")
        xs.rm(on.back.device.path)
        on.xen.run()
        assert on.adapter.targets == {}
        assert target.missing
        assert srb.srb_status is SrbStatus.ERROR
        assert target.frontend.granter.granted == 0
        assert bus.gnttab.permitted == permitted - rings
        assert len(bus.store.watches()) == watches - 1


def test_a_disk_that_comes_again_is_a_new_target() -> None:
    with scene("windows") as on:
        old = on.target
        unplug(on)
        xs = on.xen.toolstack.xs
        (device,) = on.guest.created.devices
        xs.rm(device.frontend_path)
        xs.rm(device.backend_path)
        xs.rm(device.libxl_path)
        on.xen.run()
        device.add(xs)
        on.xen.run()
        assert on.target is not old
        assert on.target.state is FrontendState.ENABLED


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("state"), st.sampled_from(["", "0", "1", "2", "3", "4", "5", "6", "9"])),
        st.tuples(st.just("online"), st.sampled_from(["0", "1", "", "x"])),
        st.tuples(st.just("sectors"), st.sampled_from(["", "0", "77", "x", "9" * 30])),
        st.tuples(st.just("sector-size"), st.sampled_from(["", "512", "4096", "3"])),
        st.tuples(st.just("stop"), st.just("")),
        st.tuples(st.just("start"), st.just("")),
        st.tuples(st.just("read"), st.just("")),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, personality=st.sampled_from(["windows", "linux"]))
def test_whatever_the_backend_writes_every_srb_ends_and_nothing_leaks(
    steps: list[tuple[str, str]], personality: str
) -> None:
    with scene(personality) as on:
        target = on.target
        srbs: list[Srb] = []
        for key, value in steps:
            if key == "stop":
                target.stop()
            elif key == "start":
                # One that the adapter let go of is not started any more.
                there = target in on.adapter.targets.values()
                if there and target.is_closed and not target.missing:
                    target.start()
            elif key == "read":
                srbs.append(on.submit(read10(0, 1), [(on.page(), 0, 512)]))
            else:
                on.xen.toolstack.xs.write(f"{on.back.device.path}/{key}", value)
            on.xen.run()
        on.back.disconnect()
        xs = on.xen.toolstack.xs
        xs.rm(f"/local/domain/{on.guest.domid}/{FRONT}")
        xs.rm(on.back.device.path)
        on.xen.run()
        assert on.adapter.targets == {}
        assert all(srb.is_complete for srb in srbs)
        assert target.frontend.granter.granted == 0


# what is read


# text, as a ULONG, as a ULONG64
NUMBERS = [
    ("", 0, 0), ("0", 0, 0), ("17", 17, 17), ("17x", 17, 17), ("x17", 0, 0), (" 4", 4, 4), ("\t+4 5", 4, 4),
    ("0x10", 0, 0), ("-1", 0xFFFFFFFF, 2**64 - 1), ("-", 0, 0), ("- 1", 0, 0), ("--1", 0, 0),
    ("4294967295", 2**32 - 1, 2**32 - 1), ("4294967296", 2**32 - 1, 2**32), ("-4294967296", 2**32 - 1, 2**64 - 2**32),
    ("18446744073709551615", 2**32 - 1, 2**64 - 1), ("99999999999999999999", 2**32 - 1, 2**64 - 1),
    ("9" * 4000, 2**32 - 1, 2**64 - 1), ("\u0663", 0, 0), ("4\u0663", 4, 4), ("1e3", 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "small", "large"), NUMBERS)
def test_numbers_are_read_as_the_driver_reads_them(text: str, small: int, large: int) -> None:
    assert number(text) == small
    assert number(text, 2**64 - 1) == large


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AIAABEFCQ0Q=", bytes.fromhex("0080000441424344")),
        ("AIAABEFCQ0Q", None),
        ("AIAA=BEF", None),
        ("", None),
        ("????", None),
        ("AIAA\n", None),
        ("\u00fc\u00fc\u00fc\u00fc", None),
    ],
)
def test_a_dictated_page_is_base64_or_nothing(text: str, expected: bytes | None) -> None:
    assert page(text) == expected


def test_the_hosts_pages_reach_inquiry() -> None:
    keys = {"sm-data/scsi/0x12/0x80": "AIAABEFCQ0Q=", "sm-data/scsi/0x12/0x83": "bad"}
    with scene(keys=keys) as on:
        assert on.adapter.disks()[0].inquiry(0x80) == bytes.fromhex("0080000441424344")
        assert on.adapter.disks()[0].inquiry(0x83)[:4] == bytes.fromhex("00830014")


def test_features_are_forgotten_at_a_disconnect_and_sizes_are_not() -> None:
    backend = Backend(barrier=True, flush_cache=True, discard=True, sectors=5, indirect_segments=9)
    backend.forget_features()
    assert not (backend.barrier or backend.flush_cache or backend.discard)
    assert (backend.sectors, backend.indirect_segments) == (5, 9)


def test_a_read_after_all_that_is_still_a_read() -> None:
    with scene("linux") as on:
        on.submit(read10(0, 1), [(on.page(), 0, 512)])
        assert [slot.operation for slot in on.back.taken()] == [READ]
