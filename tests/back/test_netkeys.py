"""How each netback reads what a frontend wrote: every key absent, odd or out of range."""

from __future__ import annotations

import pytest

from tests.back.ctrlfront import channel, ring
from tests.back.netfront import Net
from tests.back.netscene import connect, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.netkeys import Offer

# What a text is as a boolean, 1 or 0; None: as if it were absent.
LINUX_TEXTS = [
    (None, None),
    ("0", 0),
    ("1", 1),
    ("2", 1),
    ("", None),
    ("00", 0),
    ("01", 1),
    ("1x", 1),
    ("0x1", 0),
    (" 1", 1),
    ("x1", None),
    ("-1", None),
    ("+1", None),
    ("yes", None),
    ("4294967296", 1),  # Linux cuts it to 32 bits and has 0
    ("18446744073709551615", 1),
    ("18446744073709551616", None),
    ("9" * 100, None),
]
# key of the frontend: what it is without
LINUX_FLAGS = [
    ("feature-rx-notify", 0),
    ("feature-sg", 0),
    ("feature-gso-tcpv4", 0),
    ("feature-gso-tcpv6", 0),
    ("feature-no-csum-offload", 0),
    ("feature-ipv6-csum-offload", 0),
    ("request-multicast-control", 0),
    ("request-rx-copy", 0),
]


def seen(net: Net, key: str) -> int:
    """What the backend made of one flag, every other one being on."""
    offer = net.back.offer
    return int(
        {
            "feature-rx-notify": offer.rx_notify,
            "feature-sg": offer.sg,
            "feature-gso-tcpv4": 1 in offer.gso_types,
            "feature-gso-tcpv6": 2 in offer.gso_types,
            "feature-no-csum-offload": not offer.csum,
            "feature-ipv6-csum-offload": offer.ipv6_csum,
            "request-multicast-control": net.back.multicast_control,
            # Without it no flag after it is read.
            "request-rx-copy": offer.rx_notify,
        }[key]
    )


@pytest.mark.parametrize(("key", "default"), LINUX_FLAGS)
@pytest.mark.parametrize(("text", "value"), LINUX_TEXTS)
def test_linux_reads_a_flag(key: str, default: int, text: str | None, value: int | None) -> None:
    with scene() as net:
        connect(net, **{key: text})
        assert net.world.vif.backend_state is State.CONNECTED
        assert seen(net, key) == (default if value is None else value)


def test_linux_reads_nothing_after_a_missing_request_rx_copy() -> None:
    with scene() as net:
        offer = connect(net, request_rx_copy=None, feature_sg="0", xdp_headroom="256")
        assert net.world.vif.backend_state is State.CONNECTED
    assert offer == Offer(
        sg=True, gso_types=(), csum=True, ipv6_csum=False, rx_notify=False, headroom=0
    )


@pytest.mark.parametrize(
    ("keys", "types"),
    [
        ({}, (1, 2)),
        ({"feature_sg": "0"}, ()),
        ({"feature_no_csum_offload": "1"}, (2,)),
        ({"feature_ipv6_csum_offload": "0"}, (1,)),
    ],
)
def test_linux_sends_large_packets_only_to_who_sums_them(
    keys: dict[str, str], types: tuple[int, ...]
) -> None:
    with scene() as net:
        assert connect(net, **keys).gso_types == types


# text of multi-queue-num-queues, queues of the backend; None: the device is broken. At most 4.
COUNTS = [
    (None, 1),
    ("", 1),
    ("x", 1),
    ("-1", 1),
    ("0", None),
    ("1", 1),
    ("2", 2),
    ("4", 4),
    ("5", None),
    ("4x", 4),
    ("4294967295", None),
    ("4294967297", None),  # Linux cuts it to 32 bits and has 1
    ("18446744073709551615", None),
]


@pytest.mark.parametrize(("text", "queues"), COUNTS)
def test_linux_reads_how_many_queues(text: str | None, queues: int | None) -> None:
    with scene(queues=4) as net:
        assert net.world.vif.backend_key("multi-queue-max-queues") == "4"
        keys: dict[str, str | None] = {"multi-queue-num-queues": text}
        if queues is not None and queues > 1:
            # Below their own directories, and nowhere else.
            keys |= {"tx-ring-ref": None, "rx-ring-ref": None, "event-channel": None}
            for index in range(queues):
                keys |= queue_keys(net, f"queue-{index}/")
        net.world.vif.announce(keys)
        net.world.run()
        if queues is None:
            assert net.world.vif.backend_state is State.CLOSING
            assert net.back.queues == []
        else:
            assert net.world.vif.backend_state is State.CONNECTED
            assert len(net.back.queues) == queues


def queue_keys(net: Net, home: str) -> dict[str, str]:
    guest = net.world.guest
    _, tx_ref = ring(guest, "netif_tx")
    _, rx_ref = ring(guest, "netif_rx")
    port = channel(guest).port
    return {
        f"{home}tx-ring-ref": str(tx_ref),
        f"{home}rx-ring-ref": str(rx_ref),
        f"{home}event-channel": str(port),
    }


@pytest.mark.parametrize("missing", ["tx-ring-ref", "rx-ring-ref", "event-channel"])
def test_a_key_that_the_last_queue_lacks_breaks_all(missing: str) -> None:
    with scene(queues=3) as net:
        dom0 = net.world.platform.dom0
        before = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks))
        keys: dict[str, str | None] = {"multi-queue-num-queues": "3"}
        for index in range(3):
            keys |= queue_keys(net, f"queue-{index}/")
        keys[f"queue-2/{missing}"] = None
        net.world.vif.announce(keys)
        net.world.run()
        assert net.world.vif.backend_key("state") == "5"
        assert (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks)) == before


# text of xdp-headroom, bytes; None: the device is broken.
HEADROOMS = [
    (None, 0),
    ("", 0),
    ("0", 0),
    ("256", 256),
    ("4095", 4095),
    ("4096", None),
    ("32767", None),
    ("65536", None),
    ("-1", 0),
    ("x", 0),
    ("256x", 256),
]


@pytest.mark.parametrize(("text", "headroom"), HEADROOMS)
def test_linux_reads_the_headroom(text: str | None, headroom: int | None) -> None:
    with scene() as net:
        offer = connect(net, xdp_headroom=text)
        if headroom is None:
            assert net.world.vif.backend_key("state") == "5"
        else:
            assert offer.headroom == headroom


@pytest.mark.parametrize(
    ("keys", "split"),
    [
        ({"event-channel": "flat"}, False),
        ({"event-channel-tx": "tx", "event-channel-rx": "rx"}, True),
        ({"event-channel": "flat", "event-channel-tx": "tx", "event-channel-rx": "rx"}, True),
        # Half of a pair is none: the flat one counts.
        ({"event-channel": "flat", "event-channel-tx": "tx"}, False),
        ({"event-channel": "flat", "event-channel-rx": "rx"}, False),
        ({"event-channel": "flat", "event-channel-tx": "tx", "event-channel-rx": "x"}, False),
        ({"event-channel-tx": "tx"}, None),
        ({}, None),
    ],
)
def test_linux_falls_back_from_two_event_channels_to_one(
    keys: dict[str, str], split: bool | None
) -> None:
    with scene() as net:
        guest, dom0 = net.world.guest, net.world.platform.dom0
        ports = {name: str(channel(guest).port) for name in ("tx", "rx")}
        ports["flat"] = str(net.world.vif.port)
        before = dom0.evtchn.bound()
        named = {name: ports.get(text, text) for name, text in keys.items()}
        net.world.vif.announce({"event-channel": None, **named})
        net.world.run()
        if split is None:
            assert net.world.vif.backend_key("state") == "5"
            assert dom0.evtchn.bound() == before
        else:
            assert dom0.evtchn.bound() - before == 1 + split


def test_a_control_ring_without_its_port_is_fatal() -> None:
    with scene() as net:
        _, ref = ring(net.world.guest, "xen_netif_ctrl")
        connect(net, ctrl_ring_ref=str(ref))
        assert net.world.vif.backend_key("state") == "5"
        assert net.back.queues == []
        assert net.back.control is None


@pytest.mark.parametrize("ref", ["x", "-1", ""])
def test_a_reference_that_is_no_number_is_no_control_ring(ref: str) -> None:
    with scene() as net:
        connect(net, ctrl_ring_ref=ref)
        assert net.world.vif.backend_state is State.CONNECTED
        assert net.back.control is None


@pytest.mark.parametrize(("text", "connects"), [(None, False), ("0", False), ("1", True)])
def test_qemu_refuses_a_guest_without_rx_copy(text: str | None, connects: bool) -> None:
    with scene("qemu") as net:
        connect(net, request_rx_copy=text)
        assert net.world.vif.backend_state is (State.CONNECTED if connects else State.CLOSING)


@pytest.mark.parametrize("profile", ["qemu", "mirage"])
def test_others_read_flat_keys_of_one_queue(profile: str) -> None:
    with scene(profile, queues=4) as net:
        guest = net.world.guest
        others = {f"event-channel-{way}": str(channel(guest).port) for way in ("tx", "rx")}
        before = net.world.platform.dom0.evtchn.bound()
        net.world.vif.announce({**others, "multi-queue-num-queues": "4", "ctrl-ring-ref": "1"})
        net.world.run()
        assert net.world.vif.backend_state is State.CONNECTED
        assert len(net.back.queues) == 1
        assert net.back.control is None
        assert net.world.platform.dom0.evtchn.bound() == before + 1
        assert net.world.vif.backend_key("multi-queue-max-queues") is None


@pytest.mark.parametrize(
    ("text", "on"), [(None, 0), ("1", 1), ("0", 0), ("2", 0), ("01", 0), ("1 ", 0), ("", 0)]
)
def test_mirage_takes_a_1_and_nothing_else_for_true(text: str | None, on: int) -> None:
    with scene("mirage") as net:
        assert connect(net, feature_gso_tcpv4=text).gso_types == (1,) * on


# mtu of the backend, feature-sg, longest frame for the guest
MTUS = [
    (None, "1", 1518),
    ("9000", "1", 9018),
    ("65517", "1", 65535),
    ("70000", "1", 65535),
    ("9000", "0", 1518),
    ("1400", "0", 1418),
    ("junk", "1", 1518),
]


@pytest.mark.parametrize(("mtu", "sg", "longest"), MTUS)
def test_the_mtu_bounds_what_goes_to_the_guest(mtu: str | None, sg: str, longest: int) -> None:
    with scene() as net:
        if mtu is not None:
            net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", mtu)
        connect(net, feature_sg=sg)
        assert net.back.mtu + 18 == longest


def test_multicast_control_is_watched() -> None:
    with scene() as net:
        connect(net)
        changes = []
        for text in ("1", "0", "2", "x", "1"):
            net.world.vif.write_key("request-multicast-control", text)
            net.world.run()
            changes.append(net.back.multicast_control)
        net.world.vif.remove_key("request-multicast-control")
        net.world.run()
        assert changes == [True, False, True, False, True]
        assert not net.back.multicast_control


def test_a_closed_interface_watches_nothing_more() -> None:
    with scene() as net:
        connect(net)
        net.world.vif.state = State.CLOSED
        net.world.run()
        net.world.vif.write_key("request-multicast-control", "1")
        net.world.run()
        assert not net.back.multicast_control
