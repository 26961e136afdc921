"""Cases of the frontend's side of xenbus: states, keys, backends that lie, stall or vanish."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.busscene import BusEnd, BusFrontScene, FrontDevice
from xenpv.testing.cases.claims import expect_one, holds
from xenpv.testing.cases.suite import CaseResult, Factory, Suite

SUITE = Suite("xenbus-frontend", "BUSF-", BusFrontScene)

HEADER: Final = "io/xenbus.h, enum xenbus_state"
VIF: Final = "win-xenvif frontend.c, FrontendSetState"
VBD: Final = "win-xenvbd frontend.c, FrontendSetState"
CLOSED: Final = ("CLOSING", "CLOSED", "INITIALISING")
GARBAGE: Final = ("abc", "-1", "9", "4294967300", "9" * 50, "0x2", "\u0664", "v" * 2000)
MINUTES: Final = 130  # a little over the 120 s that a driver waits before it looks again


def check_xenbus_frontend(
    factory: Factory | None = None, *, kind: str = "vbd", seed: int = 0
) -> list[CaseResult]:
    """Every case of the suite "xenbus-frontend" against the frontend that `factory` makes.

    `kind` is vbd or vif (testing.ends.protocols); without a factory both of ours are asked.
    Raises CasesFailed.
    """
    return SUITE.check(None if factory is None else BusEnd(kind, factory), seed=seed)


def _connect(device: FrontDevice) -> None:
    device.boot()
    device.connected()


@SUITE.case(
    "BUSF-001",
    "a frontend connects to an honest backend",
    source=f"{HEADER}; {VIF}; {VBD}",
    expected="both at 4, with keys that lead to its rings and its port; requests are served",
    hostile=False,
)
def _connects(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        holds(device.back.connected, f"{device.kind}: the rings could be mapped")
        device.serves()


@SUITE.case(
    "BUSF-002",
    "the keys are there before the state that tells of them",
    source=f"{HEADER}: Initialised, or Connected of a vif",
    expected="when the backend sees that state, ring references and port are right",
    hostile=False,
)
def _keys_first(s: BusFrontScene) -> None:
    for device in s:
        device.boot()
        told = State.INITIALISED if device.kind == "vbd" else State.CONNECTED
        seen = [state for state in device.back.states if state in (told, State.CONNECTED)]
        holds(seen, f"{device.kind}: the frontend said that it is ready")
        holds(device.back.connected, f"{device.kind}: at that moment its keys led to its rings")


@SUITE.case(
    "BUSF-003",
    "a backend at InitWait that stays there",
    source="qubes-mirage-firewall#230; spec: a parked backend",
    expected="no harm, no busy loop, however long; it goes on when the backend does",
)
def _parked(s: BusFrontScene) -> None:
    for device in s:
        device.answers = {State.CLOSING: None, State.CLOSED: None, State.INITIALISED: None}
        device.answers |= {State.CONNECTED: None}
        device.boot()
        device.advance(10 * MINUTES)
        holds(device.frontend != "UNKNOWN", f"{device.kind}: the frontend has a state")
        _alive(device)


@SUITE.case(
    "BUSF-004",
    "states of the backend that are none, at boot",
    source=f"{VIF}: strtol; a backend may write any text",
    expected="no exception; honest states lead to a connection",
)
def _garbage_at_boot(s: BusFrontScene) -> None:
    for device in s:
        device.prepare("abc")
        device.boot()
        device.show(State.INIT_WAIT)
        device.advance(MINUTES)
        expect_one(device.frontend, ("CONNECTED", *CLOSED, "INITIALISED"), f"{device.kind}")


@SUITE.case(
    "BUSF-005",
    "states of the backend that are none, of a device that is connected",
    source=f"{VIF}; {VBD}; a backend may write any text",
    expected="no exception; it serves on, or it closes; never another state",
)
def _garbage(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        for text in GARBAGE:
            found = device.show(text)
            allowed = ("CONNECTED", *CLOSED)
            expect_one(found, allowed, f"{device.kind} at the backend's state {text!r:.30}")
        device.show(State.CONNECTED)
        if device.frontend == "CONNECTED":
            device.serves()


@SUITE.case(
    "BUSF-006",
    "the backend closes",
    source=f"{HEADER}; {VIF}",
    expected="the frontend answers with Closing or Closed; nothing stays granted at the end",
    hostile=False,
)
def _closes(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        rings = device.rings()
        holds(rings, f"{device.kind}: its keys name the pages of its rings")
        device.write("online", "0")
        found = device.show(State.CLOSING)
        expect_one(found, ("CLOSING", "CLOSED"), f"{device.kind}: the frontend")
        device.show(State.CLOSED)
        device.back.detach()
        device.run()
        device.grants_nothing(rings, "when its backend has closed")


@SUITE.case(
    "BUSF-007",
    "the backend goes from Connected to Closed at once",
    source=f"{HEADER}; spec: 4 to 6 leaves the frontend at 5",
    expected="no exception; no other state than that of a close",
)
def _skips(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        found = device.show(State.CLOSED)
        expect_one(found, ("CONNECTED", *CLOSED), f"{device.kind}: the frontend")
        device.advance(MINUTES)
        expect_one(device.frontend, ("CONNECTED", *CLOSED), f"{device.kind}: a while later")


@SUITE.case(
    "BUSF-008",
    "the backend's directory goes while it is connected",
    source="xenopsd#613; mirage-net-xen#121",
    expected="the frontend does not hang, nor raise; the guest lives",
)
def _gone(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        device.back.detach()
        device.write("", None)
        device.advance(MINUTES)
        _alive(device)


def _alive(device: FrontDevice) -> None:
    domain = device.world.domain
    holds(not domain.is_shutdown and not domain.dead, f"{device.kind}: its guest lives")


@SUITE.case(
    "BUSF-009",
    "the backend's directory goes before it was at InitWait",
    source=f"{VIF}: absent",
    expected="the frontend gives up, or waits; the guest lives",
)
def _never_there(s: BusFrontScene) -> None:
    for device in s:
        device.prepare(State.INITIALISING)
        device.boot()
        device.write("", None)
        device.advance(3 * MINUTES)
        holds(device.frontend != "CONNECTED", f"{device.kind}: the frontend is not Connected")
        _alive(device)


@SUITE.case(
    "BUSF-010",
    "the backend changes its state as fast as it can",
    source="watch events coalesce; the state is read at each",
    expected="the work is bounded; the guest lives",
)
def _flood(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        path = f"{device.world.backend_path}/state"
        for number in range(300):
            device.world.xs.write(path, str((3, 4, 2, 4, 7, 8, 1, 4)[number % 8]))
            if number % 30 == 0:
                device.run()
        device.world.xs.write(path, "4")
        device.run()
        expect_one(device.frontend, ("CONNECTED", *CLOSED), f"{device.kind}: the frontend")
        _alive(device)


@SUITE.case(
    "BUSF-011",
    "a flood of keys that mean nothing in the backend's directory",
    source="win-xenvbd watches the whole directory",
    expected="it serves on",
)
def _junk(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        for number in range(150):
            device.world.xs.write(f"{device.world.backend_path}/junk-{number}", "v" * 500)
            device.world.xs.write(f"{device.world.backend_path}/feature-junk", str(number))
        device.run()
        device.connected()
        device.serves()


@SUITE.case(
    "BUSF-012",
    "events of a backend that has nothing to say",
    source="io/ring.h: an event is no response",
    expected="nothing happens; requests are served",
)
def _events(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        for _ in range(500):
            device.back.notify()
        device.run()
        for _ in range(100):
            device.back.notify()
            device.run()
        device.connected()
        device.serves()


@SUITE.case(
    "BUSF-013",
    "`online` is no number, or goes to 0 while the device is in use",
    source=f"{VIF}: strtol in base 2; {VBD}: `online` with state 5",
    expected="the guest lives; a vbd serves on, a vif may ask to be ejected",
)
def _online(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        for text in ("abc", "", "2", "0", "-0", "v" * 1000, "1"):
            device.write("online", text)
        _alive(device)
        if device.kind == "vbd":
            device.connected()
            device.serves()


@SUITE.case(
    "BUSF-014",
    "reconfiguration, which nobody uses",
    source=f"{HEADER}: Reconfiguring 7, Reconfigured 8",
    expected="the frontend stays as it is",
)
def _reconfigured(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        for state in (State.RECONFIGURING, State.RECONFIGURED, State.CONNECTED):
            device.show(state)
        device.connected()
        device.serves()


@SUITE.case(
    "BUSF-015",
    "the backend takes its pages and ports back in the midst of work",
    source="EVTCHNOP_close: the other end is unbound; XSA-396",
    expected="requests wait; the guest lives, events do not fail it",
)
def _detached(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        device.back.detach()
        if device.kind == "vbd":
            started = device.world.app.start_read(0, 8)
            device.run()
            holds(not started.okay, "a read that no backend answered is not done well")
        else:
            device.world.app.send(bytes(60))
            device.run()
        _alive(device)


@SUITE.case(
    "BUSF-016",
    "features of the backend that are no numbers",
    source="xenbus: keys are text of another domain",
    expected="the frontend connects without them, or not at all; no exception",
)
def _features(s: BusFrontScene) -> None:
    texts = ("abc", "-1", "", "4294967296", "9" * 60, "\u0661", "v" * 2000, "0x1")
    for device in s:
        device.prepare(State.INITIALISING)
        for number, key in enumerate(
            ("multi-queue-max-queues", "max-ring-page-order", "feature-max-indirect-segments",
             "feature-persistent", "feature-split-event-channels", "feature-ctrl-ring",
             "feature-gso-tcpv4", "feature-rx-copy", "feature-sg")
        ):  # fmt: skip
            device.write(key, texts[number % len(texts)])
        device.write("state", "2")
        device.boot()
        device.advance(MINUTES)
        allowed = ("CONNECTED", "INITIALISED", *CLOSED)
        expect_one(device.frontend, allowed, f"{device.kind}: the frontend")
        _alive(device)


@SUITE.case(
    "BUSF-017",
    "what a connected frontend grants is its rings and nothing of others",
    source="public/grant_table.h: entries name one domain",
    expected="a third domain can map none of it; the backend can",
)
def _stranger(s: BusFrontScene) -> None:
    for device in s:
        _connect(device)
        device.serves()
        platform = device.world.platform
        other = platform.dom0.domctl.create_domain(vcpus=1, max_pages=64)
        other.populate(32)
        other.unpause()
        for ref in range(8, 512):
            status = device.map_from(other, ref)
            holds(status != 0, f"{device.kind}: d{other.domid} maps reference {ref}")
        platform.dom0.domctl.destroydomain(other.domid)


@SUITE.case(
    "BUSF-018",
    "commits of the frontend's transactions fail, for somebody wrote what they saw",
    source="docs/misc/xenstore.txt, EAGAIN; win-xenvif frontend.c: 10 retries",
    expected="it tries again: all keys are there, and it connects",
)
def _conflicts(s: BusFrontScene) -> None:
    for device in s:
        device.world.platform.run()
        device.conflict()
        _connect(device)
        holds(device.rings(), f"{device.kind}: its keys name the pages of its rings")
        device.serves()
