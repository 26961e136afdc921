"""Every key that a frontend reads, with every sort of value; what it writes, and when it gives up."""

from __future__ import annotations

import pytest

from tests.vif.rawback import Scene, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus import inf
from xenpv.bus.store import StoreInterface
from xenpv.errors import LocalProtocolError
from xenpv.vif.features import KEYS, Features
from xenpv.vif.frontend import FrontendState
from xenpv.vif.mac import parse_mtu
from xenpv.vif.parameters import PATH

# The sorts of value: absent, 0, 1, 2, nothing, more than 64 bits, negative, and what looks alike.
HUGE = str(1 << 64)
VALUES = (None, "0", "1", "2", "", HUGE, "-1", "10", "1x", "x1", " 1", "+1", "01", "00", "1\n")
# strtol in base 2: leading digits 0 and 1, of which one is a 1.
BASE_2 = dict(zip(VALUES, (0, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1), strict=True))
# A decimal number that is not 0.
DECIMAL = dict(zip(VALUES, (0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0), strict=True))

# key, the field that it decides, its value where the key is on and where it is off
FLAGS = [
    ("feature-sg", "sg", True, False),
    ("feature-gso-tcpv4", "gso_tcpv4", True, False),
    ("feature-gso-tcpv6", "gso_tcpv6", True, False),
    ("feature-no-csum-offload", "csum", False, True),
    ("feature-ipv6-csum-offload", "ipv6_csum", True, False),
    ("feature-split-event-channels", "split", True, False),
    ("feature-ctrl-ring", "ctrl_ring", True, False),
    ("feature-dynamic-multicast-control", "dynamic_multicast", True, False),
]
OF_WINDOWS = ("ctrl_ring", "dynamic_multicast")


def read(values: dict[str, str | None], *, windows: bool) -> Features:
    return Features.parse([values.get(key) for key in KEYS], windows=windows)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("key", "field", "on", "off"), FLAGS)
def test_flag(key: str, field: str, on: bool, off: bool, value: str | None) -> None:
    windows = read({key: value}, windows=True)
    assert getattr(windows, field) is (on if BASE_2[value] else off)
    linux = read({key: value}, windows=False)
    is_on = DECIMAL[value] and field not in OF_WINDOWS
    assert getattr(linux, field) is (on if is_on else off)


# multi-queue-max-queues, what it offers; 0: the connect fails
QUEUES = [(None, None), ("1", 1), ("2", 2), ("8", 8), ("9", 9), ("999999999", 999999999), ("0", 0), ("", 0), (HUGE, 0), ("-1", 0), ("x", 0), ("1x", 0)]  # fmt: skip


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize(("value", "offered"), QUEUES)
def test_max_queues(value: str | None, offered: int | None, windows: bool) -> None:
    if offered == 0:
        with pytest.raises(LocalProtocolError, match="queues"):
            read({"multi-queue-max-queues": value}, windows=windows)
    else:
        assert read({"multi-queue-max-queues": value}, windows=windows).max_queues == offered


# mtu; None: the connect fails
MTUS = [
    (None, 1500), ("1500", 1500), ("60", 60), ("9000", 9000), ("1500x", 1500), (" 1500", 1500),
    ("+70", 70), ("59", None), ("0", None), ("1", None), ("2", None), ("", None), ("-1", None),
    ("-1500", None), ("junk", None), (HUGE, None), ("x1500", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "mtu"), MTUS)
def test_mtu(text: str | None, mtu: int | None) -> None:
    if mtu is None:
        with pytest.raises(LocalProtocolError, match="below 60"):
            parse_mtu(text)
    else:
        assert parse_mtu(text) == mtu


@pytest.mark.parametrize("key", ["feature-sg", "multi-queue-max-queues", "feature-gso-tcpv4"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_whatever_a_key_says_the_device_connects_or_closes(
    personality: str, key: str, value: str | None
) -> None:
    features = {} if value is None else {key: value}
    with scene(personality, features, connect=False) as s:
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        state = s.pdo.frontend.state
        if key == "multi-queue-max-queues" and not (
            value is None or (value.isdecimal() and 0 < int(value) < 10**9)
        ):
            assert state is FrontendState.CLOSED
            assert s.back.device.state is State.CLOSED
        else:
            assert state is FrontendState.ENABLED


def keys(s: Scene) -> dict[str, str | None]:
    names = (
        "multi-queue-num-queues", "tx-ring-ref", "rx-ring-ref", "event-channel",
        "event-channel-tx", "event-channel-rx",
    )  # fmt: skip
    return {name: s.key(name) for name in names}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("queues", range(1, 9))
def test_one_queue_lies_flat_and_several_in_directories(
    personality: str, queues: int, split: bool
) -> None:
    features = {
        "multi-queue-max-queues": str(queues),
        "feature-split-event-channels": str(int(split)),
    }
    channels = ("event-channel-tx", "event-channel-rx") if split else ("event-channel",)
    wanted = {"tx-ring-ref", "rx-ring-ref", *channels}
    with scene(personality, features, vcpus=8) as s:
        assert s.key("multi-queue-num-queues") == str(queues)
        flat = {name for name, value in keys(s).items() if value is not None}
        assert flat == {"multi-queue-num-queues", *(wanted if queues == 1 else ())}
        for index in range(queues if queues > 1 else 0):
            home = f"queue-{index}/"
            numbers = [s.key(home + name) for name in wanted]
            assert all(text is not None and text.isdecimal() for text in numbers)
        assert s.key(f"queue-{queues}/tx-ring-ref") is None
        assert s.key("queue-0/tx-ring-ref") is None or queues > 1


@pytest.mark.parametrize(("value", "queues"), [(1, 1), (3, 3), (8, 4), (0, 1)])
def test_the_registry_limits_queues_too(value: int, queues: int) -> None:
    registry = inf.installed()
    registry.set(PATH, "FrontendMaxQueues", value)
    with scene(features={"multi-queue-max-queues": "9"}, vcpus=4, connect=False) as s:
        s.guest.registry.set(PATH, "FrontendMaxQueues", value)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert len(s.pdo.frontend.queues) == queues


@pytest.mark.parametrize(
    ("conflicts", "connects"), [(0, True), (1, True), (9, True), (10, False), (50, False)]
)
def test_keys_are_written_in_ten_tries_at_most(conflicts: int, connects: bool) -> None:
    tries: list[int] = []
    end = StoreInterface.transaction_end

    def conflicting(self: StoreInterface, transaction: object, *, commit: bool) -> bool:
        if commit and transaction in self.transactions():
            tries.append(1)
            if len(tries) <= conflicts:
                end(self, transaction, commit=False)  # type: ignore[arg-type]  # passed through
                return False
        return end(self, transaction, commit=commit)  # type: ignore[arg-type]  # passed through

    with scene(connect=False) as s, pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreInterface, "transaction_end", conflicting)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        state = s.pdo.frontend.state
        assert (state is FrontendState.ENABLED) is connects
        assert len(tries) == (conflicts + 1 if connects else 10)
        assert s.guest.bus is not None
        assert s.guest.bus.store.transactions() == []
        if not connects:
            assert "no commit in 10 tries" in s.pdo.frontend.error
            assert s.guest.bus.gnttab.permitted == 0


# parameters of the registry, gso keys
GSO = [
    ({}, ("1", "1")),
    ({"ReceiverDisableIpVersion4Gso": 1}, ("0", "1")),
    ({"ReceiverDisableIpVersion6Gso": 1}, ("1", "0")),
    ({"ReceiverDisableIpVersion4Gso": 2, "ReceiverDisableIpVersion6Gso": 2}, ("0", "0")),
]


@pytest.mark.parametrize(("values", "written"), GSO)
def test_gso_is_asked_for_unless_the_registry_forbids_it(
    values: dict[str, int], written: tuple[str, str]
) -> None:
    with scene(connect=False) as s:
        for name, value in values.items():
            s.guest.registry.set(PATH, name, value)
        path = f"/local/domain/{s.guest.domid}/device/vif/0"
        for name in ("feature-gso-tcpv4-prefix", "feature-gso-tcpv6-prefix"):
            s.xen.toolstack.xs.write(f"{path}/{name}", "1")
            s.xen.toolstack.xs.set_permissions(f"{path}/{name}", [f"n{s.guest.domid}", "r0"])
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert (s.key("feature-gso-tcpv4"), s.key("feature-gso-tcpv6")) == written
        assert s.key("feature-gso-tcpv4-prefix") is s.key("feature-gso-tcpv6-prefix") is None
