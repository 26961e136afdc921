"""Cases of the backend's side of xenbus: states, keys, the toolstack, a guest that lies or dies."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.busscene import BusBackScene, BusEnd
from xenpv.testing.cases.claims import expect, expect_one, holds
from xenpv.testing.cases.suite import CaseResult, Factory, Suite

SUITE = Suite("xenbus-backend", "BUSB-", BusBackScene)

HEADER: Final = "io/xenbus.h, enum xenbus_state"
PROBE: Final = "Linux drivers/xen/xenbus/xenbus_probe_backend.c"
GARBAGE: Final = (
    "", " ", "abc", "-1", "9", "99", "4294967300", "9" * 50, "0x4", "4.0", "\u0664", "4\n4",
    "v" * 2000,
)  # fmt: skip
BAD_NUMBERS: Final = (
    "", "abc", "-1", "4294967295", "4294967296", "99999999999999999999", "0x8", " ", "v" * 2000,
)  # fmt: skip
NEVER: Final = ("CONNECTED",)


def check_xenbus_backend(
    factory: Factory | None = None, *, kind: str = "vbd", seed: int = 0
) -> list[CaseResult]:
    """Every case of the suite "xenbus-backend" against the backend that `factory` makes.

    `kind` is vbd or vif (testing.ends.protocols); without a factory both of ours are asked.
    Raises CasesFailed.
    """
    return SUITE.check(None if factory is None else BusEnd(kind, factory), seed=seed)


@SUITE.case(
    "BUSB-001",
    "a backend goes to InitWait by itself, and connects when its frontend is ready",
    source=f"{HEADER}; {PROBE}",
    expected="1, then 2 with its features; 4 once the frontend's keys are there; requests served",
    hostile=False,
)
def _connects(s: BusBackScene) -> None:
    for device in s:
        expect(device.backend, "INIT_WAIT", f"the {device.kind}'s backend before its frontend")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-002",
    "a connected frontend closes",
    source=f"{HEADER}: Closing is answered with Closing, Closed with Closed",
    expected="5, then 6; rings and the port are let go, no state is skipped",
    hostile=False,
)
def _closes(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        expect(device.show(State.CLOSING), "CLOSING", f"the {device.kind}'s backend at Closing")
        expect(device.show(State.CLOSED), "CLOSED", f"the {device.kind}'s backend at Closed")
        device.holds_nothing("once it is Closed")


@SUITE.case(
    "BUSB-003",
    "a frontend closes before it connects, as Windows' do",
    source="win-xenvif frontend.c, FrontendSetState; mirage-net-xen#121",
    expected="5 for 5, 6 for 6, 2 for 1; it connects then",
    hostile=False,
)
def _closes_first(s: BusBackScene) -> None:
    for device in s:
        states = [device.show(one) for one in (State.CLOSING, State.CLOSED, State.INITIALISING)]
        wanted = ["CLOSING", "CLOSED", "INIT_WAIT"]
        expect(states, wanted, f"the {device.kind}'s backend at 5, 6 and 1")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-004",
    "a frontend connects, closes and connects again, many times",
    source=HEADER,
    expected="new rings and a new port each time; nothing of the old ones is kept",
    hostile=False,
)
def _again(s: BusBackScene) -> None:
    for device in s:
        for _ in range(5):
            device.connect()
            device.serves()
            device.reopen()
            device.holds_nothing("between two connections")


@SUITE.case(
    "BUSB-005",
    "a frontend skips Closing",
    source=f"{HEADER}; {PROBE}",
    expected="the backend lets go at Closed, or when it begins again; it connects then",
)
def _skips(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.show(State.CLOSED)
        device.holds_nothing("when its frontend is Closed at once")
        expect(device.show(State.INITIALISING), "INIT_WAIT", f"the {device.kind}'s backend")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-006",
    "states that are none, before the frontend connects",
    source="xenbus_read_driver_state; a guest writes any text",
    expected="not Connected, no exception; it or the next one that is made connects",
)
def _garbage(s: BusBackScene) -> None:
    for device in s:
        for text in GARBAGE:
            found = device.show(text)
            holds(found not in NEVER, f"the {device.kind}'s backend is {found} at state {text!r}")
            device.holds_nothing(f"at state {text!r}")
        device.mend()
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-007",
    "states that are none, of a frontend that is connected",
    source="xenbus_read_driver_state; a guest writes any text",
    expected="whatever is made of it: no exception, all let go; it or the next one connects",
)
def _garbage_connected(s: BusBackScene) -> None:
    for device in s:
        for text in ("", "abc", "77", "-4", "v" * 2000):
            device.connect()
            device.show(text)
            device.mend()
            device.holds_nothing(f"after state {text!r:.20}")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-008",
    "a frontend says that it is ready, and its keys are missing",
    source="io/blkif.h, ring-ref; io/netif.h, tx-ring-ref; xenbus_scanf of each",
    expected="not Connected; right keys connect it once it has reopened",
)
def _missing(s: BusBackScene) -> None:
    for device in s:
        for key in [*device.keys_of_rings(), "event-channel"]:
            found = device.announce({key: None})
            holds(found not in NEVER, f"the {device.kind}'s backend is {found} without {key}")
            device.holds_nothing(f"without {key}")
            device.reopen()
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-009",
    "an event channel that is none",
    source="io/xenbus.h; EVTCHNOP_bind_interdomain refuses it",
    expected="not Connected, no port bound; a backend that closes for it says why in `error`",
)
def _bad_port(s: BusBackScene) -> None:
    for device in s:
        for text in ("0", "1000", "65535", *BAD_NUMBERS):
            found = device.announce({"event-channel": text})
            what = f"event-channel {text!r:.30}"
            holds(found not in NEVER, f"the {device.kind}'s backend is {found} with {what}")
            said = found != "CLOSING" or device.front.backend_key("error")
            holds(said, f"the {device.kind}'s backend closes with {what}, and `error` is empty")
            device.holds_nothing(f"with {what}")
            device.reopen()
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-010",
    "ring references that are none",
    source="io/xenbus.h; GNTTABOP_map_grant_ref refuses them",
    expected="not Connected, nothing mapped; a backend that closes for it says why in `error`",
)
def _bad_ring(s: BusBackScene) -> None:
    for device in s:
        key = device.keys_of_rings()[0]
        for text in ("4000", "1000000", *BAD_NUMBERS):
            found = device.announce({key: text})
            what = f"{key} {text!r:.30}"
            holds(found not in NEVER, f"the {device.kind}'s backend is {found} with {what}")
            said = found != "CLOSING" or device.front.backend_key("error")
            holds(said, f"the {device.kind}'s backend closes with {what}, and `error` is empty")
            device.holds_nothing(f"with {what}")
            device.reopen()
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-011",
    "the port of another device of the guest",
    source="EVTCHNOP_bind_interdomain: a port is bound once",
    expected="not Connected; the device that has it goes on",
)
def _stolen_port(s: BusBackScene) -> None:
    for device in s:
        port = device.guest.domain.evtchn.alloc_unbound(0)
        bound = device.world.platform.dom0.evtchn.bind_interdomain(device.guest.domid, port)
        found = device.announce({"event-channel": str(port)})
        holds(found not in NEVER, f"the {device.kind}'s backend is {found} on a bound port")
        status = device.guest.domain.evtchn.status(port)
        expect(status.remote_port, bound, "the other end of that port")
        device.reopen()
        device.connect()
        device.serves()
        device.world.platform.dom0.evtchn.close(bound)


@SUITE.case(
    "BUSB-012",
    "the frontend's directory goes while it is connected",
    source=f"{PROBE}: the otherend is gone",
    expected="rings and the port are let go; no exception",
)
def _front_gone(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.front.remove_key("")
        device.run()
        device.holds_nothing("when the frontend's directory is gone")


@SUITE.case(
    "BUSB-013",
    "the toolstack takes the backend's directory while it is connected",
    source=f"{PROBE}: xenbus_dev_changed, device_unregister",
    expected="rings and the port are let go; the device can be made anew",
)
def _back_gone(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.toolstack("", None)
        expect(device.backend, "GONE", f"the {device.kind}'s backend directory")
        device.holds_nothing("when its directory is gone")


@SUITE.case(
    "BUSB-014",
    "the toolstack unplugs an honest guest's device",
    source="libxl: online 0 and state 5; docs: xenbus",
    expected="5 while the frontend closes, 6 at its end, everything let go",
    hostile=False,
)
def _unplugged(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.toolstack("online", "0")
        device.toolstack("state", "5")
        expect_one(device.backend, ("CLOSING",), f"the {device.kind}'s backend at the request")
        device.show(State.CLOSING)
        expect(device.show(State.CLOSED), "CLOSED", f"the {device.kind}'s backend at the end")
        device.holds_nothing("once it is unplugged")


@SUITE.case(
    "BUSB-015",
    "the guest is destroyed while its devices are connected",
    source="xen-core 7.4; XSA-224: a dead domain is held by what is mapped of it",
    expected="when the toolstack has removed the devices, the domain is gone for good",
)
def _destroyed(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.serves()
        platform, domid = device.world.platform, device.guest.domid
        platform.dom0.domctl.destroydomain(domid)
        device.run()
        for front in (device.world.vbd, device.world.vif):
            device.xs.rm(front.backend_path)
            device.xs.rm(front.path)
        device.run()
        holds(domid not in platform.hypervisor.domains, f"d{domid} is held by its backends")


@SUITE.case(
    "BUSB-016",
    "a guest changes its state as fast as it can",
    source=f"{PROBE}: events coalesce, the state is read at each",
    expected="the work is bounded; the last state counts",
)
def _flood(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        for number in range(300):
            device.front.write_key("state", str(number * 7 % 9))
            if number % 50 == 0:
                device.run()
        device.run()
        device.mend()
        device.holds_nothing("after a flood of states")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-017",
    "a guest fills its directory with keys that mean nothing",
    source="xenstore quotas; XSA-326",
    expected="the backend serves on",
)
def _junk(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        for number in range(200):
            device.front.write_key(f"junk/{number}", "v" * 100)
            device.front.write_key("feature-junk", str(number))
        device.run()
        expect(device.backend, "CONNECTED", f"the {device.kind}'s backend")
        device.serves()


@SUITE.case(
    "BUSB-018",
    "reconfiguration, which nobody uses",
    source=f"{HEADER}: Reconfiguring 7, Reconfigured 8",
    expected="ignored, answered with 8, or fatal to this device; never an exception",
)
def _reconfigured(s: BusBackScene) -> None:
    for device in s:
        for state in (State.RECONFIGURING, State.RECONFIGURED):
            device.connect()
            found = device.show(state)
            allowed = ("CONNECTED", "RECONFIGURED", "CLOSING")
            expect_one(found, allowed, f"the {device.kind}'s backend at {state.name}")
            device.mend()
            device.holds_nothing("once it has reopened")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-019",
    "a frontend says again that it is ready, with other rings",
    source="win-xenbus handshake; Linux blkback connect_ring, netback connect: once",
    expected="no exception; closing and opening connects it",
)
def _twice(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.announce()
        device.announce()
        device.reopen()
        device.holds_nothing("after three sets of rings")
        device.connect()
        device.serves()


@SUITE.case(
    "BUSB-020",
    "events on the port of a device that is closed",
    source="evtchn: the other end is unbound",
    expected="nothing happens",
)
def _late_events(s: BusBackScene) -> None:
    for device in s:
        device.connect()
        device.show(State.CLOSING)
        device.front.notify()
        device.show(State.CLOSED)
        for _ in range(20):
            device.front.notify()
        device.run()
        expect(device.backend, "CLOSED", f"the {device.kind}'s backend")
        device.holds_nothing("after events to a closed device")


@SUITE.case(
    "BUSB-021",
    "one device's frontend breaks the protocol",
    source="xenbus_dev_fatal is of one device",
    expected="the guest's other device is served, before and after",
)
def _isolated(s: BusBackScene) -> None:
    for device in s:
        world = device.world
        other = world.vif if device.kind == "vbd" else world.vbd
        other.connect()
        device.connect()
        device.front.sring.req_prod = 0x7FFFFFFF  # type: ignore[attr-defined]  # both kinds have one
        device.front.notify()
        device.show("nonsense")
        device.front.remove_key("")
        device.run()
        expect(other.backend_state.name, "CONNECTED", f"the backend beside the {device.kind}'s")
        device.xs.rm(other.backend_path)
