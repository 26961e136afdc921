"""net-backend: queues, events, keys and states (io/netif.h; Linux xenbus.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.evtchn import Channel
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netback import SUITE
from xenpv.testing.cases.netframes import frame
from xenpv.testing.cases.netscene import (
    QUEUES,
    BackendScene,
    S,
    inbound,
)
from xenpv.testing.cases.netslots import OKAY, tx

GARBAGE: Final = ("", "abc", "99", "-1", "4x", " 4", "4294967300", "1" * 50, "\x7f")
ROUNDS: Final = 12


@SUITE.case(
    "NETB-401",
    "features come before InitWait",
    source="io/netif.h, feature-rx-copy; Linux netfront refuses without it",
    expected="in state 2 the backend has `feature-rx-copy` = 1",
    hostile=False,
)
def features_first(s: BackendScene) -> None:
    expect(s.front.backend_state.name, "INIT_WAIT", "the backend's state")
    expect(s.front.backend_key("feature-rx-copy"), "1", "feature-rx-copy")


@SUITE.case(
    "NETB-408",
    "two queues",
    source="io/netif.h, multi-queue-num-queues",
    expected="both are served, each with its own rings and port",
    requires=("2 queues",),
    hostile=False,
)
def two_queues(s: BackendScene) -> None:
    s.connect(queues=2)
    for queue in (1, 0, 1):
        s.expect_sends(queue)


@SUITE.case(
    "NETB-409",
    "twelve queues",
    source="io/netif.h, queue-N: two digits (win-xenvif, 2020)",
    expected="queue-10 and queue-11 are served as all others",
    requires=(f"{QUEUES} queues",),
    hostile=False,
)
def twelve_queues(s: BackendScene) -> None:
    s.connect(queues=QUEUES)
    for queue in range(QUEUES):
        s.expect_sends(queue)


@SUITE.case(
    "NETB-410",
    "more queues than are offered, and none",
    source="io/netif.h, multi-queue-max-queues; Linux xenbus.c, connect",
    expected="not Connected; a right number connects then",
)
def bad_queue_count(s: BackendScene) -> None:
    offered = s.front.backend_key("multi-queue-max-queues") or "1"
    for text in (str(int(offered) + 1), "0", "4294967296", "1000000"):
        state = s.begin({"multi-queue-num-queues": text})
        holds(state is not State.CONNECTED or offered == "1", f"Connected with {text} queues")
        s.again()
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-411",
    "queues of which one is not there",
    source="io/netif.h, queue-N; Linux xenbus.c, connect_data_rings",
    expected="not Connected, and nothing of the others stays mapped",
    requires=("3 queues",),
)
def missing_queue(s: BackendScene) -> None:
    for key in ("queue-2/tx-ring-ref", "queue-1/event-channel", "queue-0/rx-ring-ref"):
        state = s.begin({key: None}, queues=3)
        holds(state is not State.CONNECTED, f"Connected without {key}")
        s.again()
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-413",
    "a frontend that closes before it connects",
    source="qubes-mirage-firewall #230; win-xenvif frontend.c: it prepares by a close",
    expected="5 is answered with 5, 6 with 6, then 1 with 2 and 4 with 4",
    hostile=False,
)
def closes_first(s: BackendScene) -> None:
    front = s.front
    for told, answer in ((State.CLOSING, 5), (State.CLOSED, 6), (State.INITIALISING, 2)):
        front.state = told
        s.run()
        expect(int(front.backend_state), answer, f"the backend's state after {told.name}")
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-414",
    "a connected frontend that closes",
    source="io/xenbus.h: Closing is answered before Closed",
    expected="5 is answered with 5 and 6 with 6; then nothing of the guest's is mapped",
    hostile=False,
)
def closes(s: BackendScene) -> None:
    s.connect()
    s.expect_sends()
    s.front.state = State.CLOSING
    s.run()
    expect(s.front.backend_state.name, "CLOSING", "the backend's state")
    s.expect_released()


@SUITE.case(
    "NETB-415",
    "a frontend that jumps to Closed",
    source="vif.h of drivers that are unloaded at once; Linux xenbus.c, set_backend_state",
    expected="the backend is Closed, and has unmapped everything",
    hostile=False,
)
def jumps_to_closed(s: BackendScene) -> None:
    s.connect()
    s.front.state = State.CLOSED
    s.run()
    expect(s.front.backend_state.name, "CLOSED", "the backend's state")
    held = [ref for ref, _ in s.front.rings() if not s.guest.revoke(ref)]
    expect(held, [], "references that it holds")


@SUITE.case(
    "NETB-416",
    "a frontend that begins anew without a close",
    source="Linux xenbus.c: a crashed guest's driver writes Initialising",
    expected="the old rings are let go; the new connection works",
    hostile=False,
)
def begins_anew(s: BackendScene) -> None:
    s.connect()
    old = s.front.rings()
    s.front.state = State.INITIALISING
    s.run()
    expect(s.front.backend_state.name, "INIT_WAIT", "the backend's state")
    expect([ref for ref, _ in old if not s.guest.revoke(ref)], [], "old references that it holds")
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-417",
    "connections again and again",
    source="Linux xenbus.c; XSA-465",
    expected=f"each of {ROUNDS} works, and each close lets everything go",
    hostile=False,
)
def many_connections(s: BackendScene) -> None:
    s.connect()
    for _ in range(ROUNDS):
        s.expect_usable()


@SUITE.case(
    "NETB-418",
    "text that is no state",
    source="io/xenbus.h; Linux xenbus_read_driver_state",
    expected="the backend lives through it; the frontend can connect then",
)
def garbage_state(s: BackendScene) -> None:
    for text in GARBAGE:
        s.front.write_key("state", text)
        s.run()
    s.front.state = State.CLOSED
    s.run()
    s.front.state = State.INITIALISING
    s.run()
    if s.front.backend_state is State.CLOSED:
        return  # it was taken for a frontend that went, as Linux does
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-419",
    "states that are none of a frontend's, while connected",
    source="Linux xenbus.c: saw state at frontend",
    expected="no exception; what is mapped is let go with the close",
)
def strange_states(s: BackendScene) -> None:
    for state in (State.INIT_WAIT, State.RECONFIGURED):
        s.connect()
        s.front.state = state
        s.run()
        s.expect_released()
        s.front.state = State.INITIALISING
        s.run()


@SUITE.case(
    "NETB-420",
    "a state that is written a thousand times",
    source="XSA-349, CVE-2020-29568",
    expected="events of one path are one: it ends in what was written last",
)
def state_flood(s: BackendScene) -> None:
    s.connect()
    for _ in range(500):
        s.front.write_key("state", "4")
        s.front.write_key("state", "3")
    s.front.write_key("state", "4")
    s.run()
    expect(s.front.backend_state.name, "CONNECTED", "the backend's state")
    s.expect_sends()


@SUITE.case(
    "NETB-421",
    "keys that lead nowhere",
    source="io/netif.h, tx-ring-ref, rx-ring-ref, event-channel",
    expected="not Connected, nothing stays mapped or bound; right keys connect then",
)
def bad_keys(s: BackendScene) -> None:
    for key in ("tx-ring-ref", "rx-ring-ref", "event-channel"):
        for text in (None, "", "junk", "-1", "99999", "4294967295", "18446744073709551616"):
            state = s.begin({key: text})
            holds(state is not State.CONNECTED, f"Connected with {key} {text!r}")
            s.again()
    s.connect()
    s.expect_sends()


@SUITE.case(
    "NETB-424",
    "a frontend's directory that is removed",
    source="Linux xenbus.c: XenbusStateUnknown",
    expected="nothing of the guest's stays mapped",
)
def directory_removed(s: BackendScene) -> None:
    s.connect()
    s.expect_sends()
    rings = s.front.rings()
    s.front.remove_key("")
    s.run()
    held = [ref for ref, _ in rings if not s.guest.revoke(ref)]
    expect(held, [], "references that it holds")


@SUITE.case(
    "NETB-425",
    "the backend's directory that is removed while frames wait",
    source="Linux xenbus.c, netback_remove",
    expected="nothing of the guest's stays mapped",
)
def backend_removed(s: BackendScene) -> None:
    s.connect()
    s.deliver(*[inbound(60, mark) for mark in range(20)], run=False)
    s.push([tx(s.page(frame(60)), 0, 0, 1, 60)])
    s.guest.xs.rm(s.front.backend_path)
    s.run()
    held = [ref for ref, _ in s.front.rings() if not s.guest.revoke(ref)]
    expect(held, [], "references that it holds")


@SUITE.case(
    "NETB-426",
    "Connected waits for the hotplug script",
    source="Linux xenbus.c, hotplug_status_changed",
    expected="state 4 is written once `hotplug-status` is `connected`",
    requires=("hotplug-status",),
    hostile=False,
)
def waits_for_script(s: BackendScene) -> None:
    path = f"{s.front.backend_path}/hotplug-status"
    s.guest.xs.write(path, "")
    state = s.begin()
    expect(state.name, "INIT_WAIT", "the backend's state before the script")
    s.guest.xs.write(path, "connected")
    s.run()
    expect(s.front.backend_state.name, "CONNECTED", "the backend's state after it")
    s.expect_sends()


@SUITE.case(
    "NETB-427",
    "a rate limit",
    source="io/netif.h, rate = bytes,usec; Linux netback.c, tx_credit_exceeded",
    expected="what is beyond it waits for the next window, and nothing is dropped for it",
    requires=("rate",),
    hostile=False,
)
def rate_limit(s: BackendScene) -> None:
    s.guest.xs.write(f"{s.front.backend_path}/rate", "600,1000000")
    s.connect()
    sent = [frame(300, mark=mark) for mark in range(6)]
    s.push([tx(s.page(data), 0, 0, mark, 300) for mark, data in enumerate(sent)])
    s.platform.loop.advance(S // 10)
    expect(s.arrived(), sent[:2], "frames in the first window")
    s.platform.loop.advance(S)
    expect(s.arrived(), sent[2:4], "frames in the second window")
    s.run()
    expect(s.arrived(), sent[4:], "frames after it")
    expect(sorted(s.front.tx_responses()), [(mark, OKAY) for mark in range(6)], "responses")


def _since(channels: Sequence[Channel], before: Sequence[int]) -> list[int]:
    """Events of each since then."""
    return [one.count - was for one, was in zip(channels, before, strict=True)]
