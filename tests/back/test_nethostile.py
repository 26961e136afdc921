"""A frontend that does anything: what it posts, writes and changes under netback's hands."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import GUEST_MAC, PEER_MAC, Net, frame, slot
from tests.back.netscene import connect, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.host.network import GSO_TCPV4, Frame

PROFILES = ["linux", "qemu", "mirage"]
KEYS = [
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "request-multicast-control",
    "xdp-headroom",
    "multi-queue-num-queues",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "state",
]
TEXTS = st.one_of(
    st.sampled_from(["", "0", "1", "2", "3", "-1", "9" * 25, "1" * 100, "4294967296", "0x1"]),
    st.integers(0, 70_000).map(str),
    st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=8),
)
WORDS = st.binary(min_size=8, max_size=8)
STEPS = st.one_of(
    st.tuples(st.just("key"), st.sampled_from(KEYS), TEXTS),
    st.tuples(st.just("remove"), st.sampled_from(KEYS), st.just("")),
    st.tuples(st.just("state"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("post"), st.lists(WORDS, max_size=20), st.just(0)),
    st.tuples(st.just("index"), st.sampled_from([0, 4, 8, 12]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("slot"), st.integers(0, 255), WORDS),
    st.tuples(st.just("revoke"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("arrive"), st.lists(st.integers(0, 9100), max_size=6), st.booleans()),
    st.tuples(st.just("wait"), st.integers(0, 90_000), st.just(0)),
    st.tuples(st.just("good"), st.integers(1, 6), st.just(0)),
)


def perform(net: Net, step: tuple[str, object, object]) -> None:
    kind, one, two = step
    front, guest = net.world.vif, net.world.guest
    if kind == "key":
        front.write_key(str(one), str(two))
    elif kind == "remove":
        front.remove_key(str(one))
    elif kind == "state":
        assert isinstance(one, int)
        front.state = one  # type: ignore[assignment]  # a state that is none
    elif kind == "post":
        assert isinstance(one, list)
        start = front.rx.req_prod
        for at, word in enumerate(one):
            front.rx.write_slot(start + at, word)
        front.rx.req_prod = start + len(one)
        front.notify()
    elif kind == "index":
        assert isinstance(one, int)
        assert isinstance(two, int)
        guest.domain.store32(front.rx.pfn, one, two)
        front.notify()
    elif kind == "slot":
        assert isinstance(one, int)
        assert isinstance(two, bytes)
        front.rx.write_slot(one, two)
    elif kind == "revoke":
        assert isinstance(one, int)
        guest.set_grant(8 + one, flags=0)
    elif kind == "arrive":
        assert isinstance(one, list)
        data = [frame(size, source=PEER_MAC, destination=GUEST_MAC) for size in one]
        gso = {"gso_type": GSO_TCPV4, "gso_size": 1460} if two else {}
        net.deliver_at_once(*[Frame(part, csum_blank=bool(two), **gso) for part in data])
    elif kind == "wait":
        assert isinstance(one, int)
        net.world.platform.loop.advance(one * 1_000_000)
    else:
        assert isinstance(one, int)
        ref = guest.grant(guest.page())
        start = front.rx.req_prod
        for at in range(one):
            front.rx.write_slot(start + at, pack("<HHI", at, 0, ref))
        front.rx.req_prod = start + one
        front.notify()


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=80, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_nothing_escapes_and_nothing_stays(
    profile: str, steps: list[tuple[str, object, object]]
) -> None:
    """No exception, no endless loop, bounded memory; and dom0 gets all back at the end."""
    with scene(profile) as net:
        dom0 = net.world.platform.dom0
        idle = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
        connect(net)
        back = net.back
        for step in steps:
            perform(net, step)
            net.world.platform.loop.advance(0)
            assert len(back.multicast) <= 64
            for queue in back.queues:
                if queue.rx is not None:
                    assert queue.rx.backlog_bytes < 524_288 + 65_550
                    assert len(queue.rx._slots) <= 256
            assert back.carrier == (back.name in net.world.bridge.ports)
            assert bool(back.queues) == (back.state is State.CONNECTED)
        net.world.vif.remove_key("")
        net.world.run()
        assert back.queues == []
        assert idle == (
            dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers)
        )  # fmt: skip


def test_xsa_155_a_slot_that_changes_after_it_was_taken_changes_nothing() -> None:
    with scene() as net:
        net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", "9000")
        connect(net)
        pfns = net.post(1)
        net.deliver_at_once(Frame(frame(9000, source=PEER_MAC, destination=GUEST_MAC)))
        # The first of three is taken, and waits for the others.
        net.world.vif.rx.write_slot(0, pack("<HHI", 77, 0, 0xFFFFFFFF))
        pfns += net.post(2)
        net.world.run()
        assert [one[0] for one in net.received()] == [0, 1, 2]
        assert net.world.guest.domain.read(pfns[0], 0, 12) == GUEST_MAC + PEER_MAC


def test_xsa_332_a_storm_of_events_is_one_pass() -> None:
    """An event that is pending stays one, however often it is sent."""
    with scene() as net:
        connect(net)
        net.world.run()
        words = net.world.platform.loop.trace.words
        before = len(words)
        for _ in range(10_000):
            net.world.vif.notify()
        sent = len(words) - before
        net.world.run()
        assert len(words) - before - sent < 20


def test_xsa_349_a_storm_of_states_fills_no_queue() -> None:
    with scene() as net:
        connect(net)
        connection = net.world.platform.backends.store.connection
        for number in range(5_000):
            net.world.vif.state = (4, 5)[number % 2]
        assert len(connection.events) <= 2
        net.world.run()
        assert net.world.vif.backend_state is State.CLOSING


def test_xsa_349_a_storm_of_multicast_control_fills_no_queue() -> None:
    with scene() as net:
        connect(net)
        connection = net.world.platform.backends.store.connection
        for number in range(5_000):
            net.world.vif.write_key("request-multicast-control", str(number % 2))
        assert len(connection.events) <= 2
        net.world.run()
        assert net.back.multicast_control


@pytest.mark.parametrize("then", [1, 5, 6])
def test_xsa_374_a_malformed_packet_and_a_close_at_once(then: int) -> None:
    """The queue's tasks are woken by both, and the rings are gone for the later one."""
    with scene() as net:
        dom0 = net.world.platform.dom0
        idle = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks))
        connect(net)
        net.world.vif.tx.req_prod = 5000
        net.world.vif.rx.req_prod = 5000
        net.world.bridge.transmit(net.sink, [Frame(frame(60))], 0)
        net.world.vif.notify()
        net.world.vif.state = State(then)
        net.world.run()
        assert (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks)) == idle


def test_xsa_361_a_reference_that_leads_nowhere_costs_one_packet() -> None:
    with scene() as net:
        connect(net)
        ring = net.world.vif.rx
        ring.push(
            pack("<HHIHHI", 0, 0, 4000, 1, 0, net.world.guest.grant(net.world.guest.page())), 2
        )
        net.world.vif.notify()
        one = Frame(frame(60, source=PEER_MAC, destination=GUEST_MAC))
        net.deliver(one, one)
        assert [answer[3] for answer in net.received()] == [-3, 60]
        assert not net.back.disabled


def test_a_guest_cannot_post_its_rings_as_pages_to_receive_into() -> None:
    """It may: what is written there is what a hostile guest could have written itself."""
    with scene() as net:
        connect(net)
        front = net.world.vif
        front.rx.push(pack("<HHI", 0, 0, front.rx_ref), 1)
        front.notify()
        net.deliver(Frame(frame(200, source=PEER_MAC, destination=GUEST_MAC)))
        data = frame(60)
        net.world.vif.tx.push(slot(net.page(data), 0, 0, 1, 60), 1)
        net.world.vif.notify()
        net.world.run()
        assert [unpack("<Hh", raw) for raw in net.world.vif.tx.take()] == [(1, 0)]
