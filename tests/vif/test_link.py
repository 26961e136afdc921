"""Link state and speed: what the toolstack writes, and when the driver above hears of it."""

from __future__ import annotations

import pytest

from tests.vif.rawback import Scene, scene
from xenpv.bus.registry import Registry
from xenpv.vif.link import parse_speed
from xenpv.vif.parameters import DEFAULTS, PATH, Parameters

G = 10**9

# A number, then one unit letter at most; all else is no speed, and 0 is a link that is down.
SPEEDS = [
    ("1", G), ("10", 10 * G), ("100", 100 * G), ("1g", G), ("1G", G), ("25G", 25 * G),
    ("100m", 10**8), ("100M", 10**8), ("56k", 56_000), ("56K", 56_000), ("+1", G), ("  7k", 7_000),
    ("0", 0), ("0g", 0), ("", 0), ("g", 0), ("x", 0), ("-1", 0), ("-1g", 0), ("1x", 0), ("1t", 0),
    ("1gg", 0), ("1gb", 0), ("1 g", 0), ("1Mb", 0), ("1.5", 0), ("0x10", 0),
    ("18446744073", 18446744073 * G), ("18446744074", 0), ("9" * 19, 0), ("9" * 40, 0),
    ("18446744073709551615k", 0), ("9223372036854775807", 0), ("18446744073709551k", 18446744073709551 * 1000),
    ("1\n", 0), ("1\N{ARABIC-INDIC DIGIT ONE}", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "speed"), SPEEDS)
def test_speed_is_a_number_and_at_most_one_letter(text: str, speed: int) -> None:
    assert parse_speed(text) == speed


def front(s: Scene, key: str, value: str | None) -> None:
    path = f"/local/domain/{s.guest.domid}/device/vif/0/{key}"
    if value is None:
        s.xen.toolstack.xs.rm(path)
    else:
        s.xen.toolstack.xs.write(path, value)
        s.xen.toolstack.xs.set_permissions(path, ["n0", f"r{s.guest.domid}"])
    s.run()


def state(s: Scene) -> tuple[bool, int, bool]:
    found = s.pdo.frontend.mac_state()
    return found.link_up, found.speed, found.full_duplex


def test_without_keys_the_link_is_up_at_the_registrys_speed() -> None:
    with scene() as s:
        assert state(s) == (True, 100 * G, True)


# key, value, link up, speed, full duplex
KEYS = [
    ("disconnect", None, True, 100 * G, True),
    ("disconnect", "0", True, 100 * G, True),
    ("disconnect", "1", False, 0, False),
    ("disconnect", "2", True, 100 * G, True),
    ("disconnect", "", True, 100 * G, True),
    ("disconnect", "10", False, 0, False),
    ("disconnect", "1x", False, 0, False),
    ("disconnect", "x1", True, 100 * G, True),
    ("disconnect", "-1", False, 0, False),
    ("disconnect", "18446744073709551616", False, 0, False),
    ("speed", None, True, 100 * G, True),
    ("speed", "0", False, 0, True),
    ("speed", "1", True, G, True),
    ("speed", "2m", True, 2_000_000, True),
    ("speed", "", False, 0, True),
    ("speed", "-1", False, 0, True),
    ("speed", "18446744073709551616", False, 0, True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "up", "speed", "full"), KEYS)
def test_keys_before_the_interface_is_enabled(
    key: str, value: str | None, up: bool, speed: int, full: bool
) -> None:
    with scene(connect=False) as s:
        if value is not None:
            front(s, key, value)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert state(s) == (up, speed, full)


@pytest.mark.parametrize(("key", "value", "up", "speed", "full"), KEYS)
def test_keys_while_it_is_enabled(
    key: str, value: str | None, up: bool, speed: int, full: bool
) -> None:
    with scene() as s:
        if value is not None:
            front(s, key, value)
        assert state(s) == (up, speed, full)


def test_the_driver_above_hears_of_each_change_once() -> None:
    with scene() as s:
        before = len(s.nic.links)
        for value in ("1", "1", "0", "0"):
            front(s, "disconnect", value)
        front(s, "speed", "1g")
        front(s, "speed", "1")  # the same in other words
        front(s, "speed", None)
        ups = [(link.up, link.speed) for link in list(s.nic.links)[before:]]
        assert ups == [(False, 0), (True, 100 * G), (True, G), (True, 100 * G)]


def test_a_first_event_of_the_watches_is_no_change() -> None:
    with scene() as s:
        assert [link.up for link in s.nic.links] == [True, True]


def test_nothing_is_watched_while_it_is_disabled() -> None:
    with scene() as s:
        bus = s.guest.bus
        assert bus is not None

        def watched() -> list[str]:
            return [one.path[13:] for one in bus.store.watches() if "vif/0" in one.path[:12]]

        assert watched() == ["speed", "disconnect"]
        s.nic.pause()
        assert watched() == []
        front(s, "disconnect", "1")
        links = len(s.nic.links)
        s.nic.restart()
        assert watched() == ["speed", "disconnect"]
        assert (not s.nic.link_up, s.nic.links[-1].up, len(s.nic.links) > links) == (
            True,
            False,
            True,
        )


def test_the_watches_are_there_again_after_a_resume() -> None:
    with scene() as s:
        bus = s.guest.bus
        assert bus is not None
        bus.suspend.trigger()
        s.run()
        s.guest.created.domain.suspend_result = 0
        s.guest.created.domain.resume()
        s.run()
        assert state(s) == (True, 100 * G, True)
        front(s, "disconnect", "1")
        assert state(s) == (False, 0, False)


def test_a_link_that_is_down_refuses_frames_above() -> None:
    with scene() as s:
        front(s, "disconnect", "1")
        assert not s.nic.link_up


def test_linux_has_no_such_keys() -> None:
    with scene("linux") as s:
        front(s, "disconnect", "1")
        front(s, "speed", "0")
        assert state(s) == (True, 100 * G, True)


# value of MacSpeed, bit/s
@pytest.mark.parametrize(("value", "speed"), [(1, G), (0, 0), (400, 400 * G)])
def test_the_registry_says_the_speed_where_the_toolstack_does_not(value: int, speed: int) -> None:
    registry = Registry({PATH: {"MacSpeed": value}})
    assert Parameters.read(registry).mac_speed * G == speed


def test_parameters_have_defaults_and_are_those_of_the_driver() -> None:
    assert Parameters.read(Registry()) is DEFAULTS
    assert Parameters.read(Registry({PATH: {"FrontendMaxQueues": "2"}})) == DEFAULTS
    names = {
        "ReceiverCalculateChecksums": 0, "ReceiverAllowGsoPackets": 0,
        "ReceiverDisableIpVersion4Gso": 1, "ReceiverDisableIpVersion6Gso": 1,
        "ReceiverIpAlignOffset": 2, "ReceiverAlwaysPullup": 1,
        "TransmitterDisableIpVersion4Gso": 1, "TransmitterDisableIpVersion6Gso": 1,
        "TransmitterAlwaysCopy": 1, "TransmitterValidateChecksums": 1,
        "TransmitterDisableMulticastControl": 1, "FrontendMaxQueues": 3,
        "FrontendDisableToeplitz": 1, "MacSpeed": 40,
    }  # fmt: skip
    found = Parameters.read(Registry({PATH: names}))
    receiver, transmitter = found.receiver, found.transmitter
    assert (receiver.calculate_checksums, receiver.allow_gso_packets) == (False, False)
    assert (receiver.disable_ipv4_gso, receiver.disable_ipv6_gso) == (True, True)
    assert (receiver.ip_align_offset, receiver.always_pullup) == (2, True)
    assert (transmitter.disable_ipv4_gso, transmitter.disable_ipv6_gso) == (True, True)
    assert (transmitter.always_copy, transmitter.validate_checksums) == (True, True)
    assert transmitter.disable_multicast_control
    assert (found.frontend_max_queues, found.frontend_disable_toeplitz) == (3, True)
    assert found.mac_speed == 40
