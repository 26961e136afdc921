"""Whatever a driver under test does, the error has its file and line: those marked HERE."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from tests.testing.ends.drivers import Backend, Frontend
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.testing import ConnectingBackend, UserEndError, user_blk_backend, user_blk_frontend
from xenpv.testing.ends.blame import shown
from xenpv.testing.ends.guard import Guard
from xenpv.testing.ends.watchdog import Stuck, watchdog

SECONDS = 0.2  # of wall clock: a driver that loops costs the test so much


def marked(kind):
    """The line of a class that has the mark."""
    lines, first = inspect.getsourcelines(kind)
    (at,) = (number for number, line in enumerate(lines) if "# HERE" in line)
    return first + at


class RaisesAtOnce(Backend):
    def __init__(self, end, image):
        raise KeyError(end, image)  # HERE


class RaisesInProbe(Backend):
    def probe(self):
        int("no number")  # HERE


class RaisesInEvent(Backend):
    def event(self):
        self.missing.append(1)  # HERE


class RaisesInState(Backend):
    def frontend_changed(self, state):
        if state is XenbusState.INITIALISED:
            raise RuntimeError("no state of mine")  # HERE
        super().frontend_changed(state)


class RaisesInStandardLibrary(Backend):
    def event(self):
        import json

        json.loads("{")  # HERE


class TakesNoArgument(Backend):
    def frontend_changed(self):  # HERE
        pass


class FailsItsOwnAssertion(Backend):
    def event(self):
        assert self.events == 99, "its own invariant"  # HERE


class RaisesInTimer(Backend):
    def event(self):
        self.end.after(1000, self.late)

    def late(self):
        raise ValueError("late")  # HERE


class RaisesInWatch(Backend):
    def probe(self):
        self.watch = self.end.store.watch(f"{self.end.path}/mode", self.told)
        super().probe()

    def told(self, path):
        raise ValueError(path)  # HERE


class LoopsForEver(Backend):
    def event(self):
        while True: self.events += 1  # HERE  # fmt: skip  # noqa: E701 - one line


class LoopsAndSwallows(Backend):
    def event(self):
        while True:
            with suppress(Exception):
                time.sleep(0.01)  # HERE


class LoopsInOurs(Backend):
    def event(self):
        while True: self.end.read(self.page, 0, 4)  # HERE  # fmt: skip  # noqa: E701 - one line


class Blocks(Backend):
    def event(self):
        time.sleep(60)  # HERE


class BlocksOnALock(Backend):
    def event(self):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()  # HERE


class WakesItselfForEver(Backend):
    def event(self):  # HERE
        self.end.soon(self.event)


class RunsTheLoop(Backend):
    def event(self):
        WORLDS[-1].platform.run()  # HERE


class WritesElsewhere(Backend):
    def event(self):
        self.end.write(0x1000, 0, b"x")  # HERE


class WritesPastItsPage(Backend):
    def event(self):
        page = self.end.page()
        self.end.write(page, 4090, bytes(8))  # HERE


class WritesAndSwallows(Backend):
    def event(self):
        with suppress(Exception):
            self.end.write(self.page + 1, 0, b"x")  # HERE


class ReadsElsewhere(Backend):
    def event(self):
        self.end.read(self.page - 1, 0, 1)  # HERE


class ReadsAtANegativeOffset(Backend):
    def event(self):
        self.end.read(self.page, -1, 2)  # HERE


class LoadsUnaligned(Backend):
    def event(self):
        self.end.load32(self.page, 2)  # HERE


class WritesWhatIsReadOnly(Backend):
    def event(self):
        page = self.end.map(self.end.peer_number("ring-ref"), readonly=True)
        self.end.store32(page, 0, 1)  # HERE


class WritesWhatItUnmapped(Backend):
    def event(self):
        page = self.end.map(self.end.peer_number("ring-ref"))
        self.end.unmap(page)
        self.end.write(page, 0, b"x")  # HERE


class PutsARingElsewhere(Backend):
    def event(self):
        self.end.back_ring([self.page + 7], 112, 16)  # HERE


class UsesARingThatIsUnmapped(Backend):
    def event(self):
        self.end.unmap(self.page)
        self.ring.take()  # HERE


class UnmapsTwice(Backend):
    def event(self):
        self.end.unmap(self.page)
        self.end.unmap(self.page)  # HERE


class NotifiesAnothersPort(Backend):
    def event(self):
        self.end.notify(1)  # HERE


class ClosesTwice(Backend):
    def event(self):
        self.end.close_port(self.port)
        self.end.close_port(self.port)  # HERE


class FreesWhatIsGranted(Backend):
    def event(self):
        page = self.end.page()
        self.end.grant(page)
        self.end.free(page)  # HERE


class GrantsAnothersPage(Backend):
    def event(self):
        self.end.grant(5)  # HERE


class MapsABadReference(Backend):
    def event(self):
        self.end.map(400)  # HERE


class TransmitsNonsense(Backend):
    def event(self):
        self.end.copy_to(8, 0, "text")  # HERE


class HasNoDisconnect(ConnectingBackend):
    def __init__(self, end, image):  # HERE
        super().__init__(end)
        self.image = image


class IsNoBackend:
    def __init__(self, end, image):  # HERE
        self.given = end, image


BACKENDS = (
    HasNoDisconnect, IsNoBackend,
    RaisesAtOnce, RaisesInProbe, RaisesInEvent, RaisesInState, RaisesInStandardLibrary, TakesNoArgument,
    FailsItsOwnAssertion, RaisesInTimer, RaisesInWatch, LoopsForEver, LoopsAndSwallows, LoopsInOurs,
    Blocks, BlocksOnALock, WakesItselfForEver, RunsTheLoop, WritesElsewhere, WritesPastItsPage,
    WritesAndSwallows, ReadsElsewhere, ReadsAtANegativeOffset, LoadsUnaligned, WritesWhatIsReadOnly,
    WritesWhatItUnmapped, PutsARingElsewhere, UsesARingThatIsUnmapped, UnmapsTwice,
    NotifiesAnothersPort, ClosesTwice, FreesWhatIsGranted, GrantsAnothersPage, MapsABadReference,
    TransmitsNonsense,
)  # fmt: skip
WORLDS = []


def play(factory):
    world = user_blk_backend(factory, seconds=SECONDS, connect=False)
    WORLDS[:] = [world]
    with world:
        world.connect()
        world.vbd.notify()
        world.run()


@pytest.mark.parametrize("kind", BACKENDS, ids=lambda one: one.__name__)
def test_a_misdeed_is_told_with_its_line(kind, monkeypatch):
    monkeypatch.setattr(Guard, "calls_max", 1000)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserEndError) as caught:
        play(kind)
    assert (caught.value.file, caught.value.line) == (__file__, marked(kind)), str(caught.value)
    assert str(caught.value).startswith(f"{shown(__file__)}:{marked(kind)} in ")
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


SAYS = (
    (WritesElsewhere, r"write of 1 bytes at pfn 0x1000\+0x0: page 0x1000 is none of this end's"),
    (WritesPastItsPage, r"write of 8 bytes at pfn 0x[0-9a-f]+\+0xffa: page 0x[0-9a-f]+ is none of this end's"),
    (WritesWhatIsReadOnly, r"store at pfn 0x[0-9a-f]+, which is mapped read-only"),
    (FreesWhatIsGranted, r"page 0x[0-9a-f]+ is freed while reference \d+ is out"),
    (NotifiesAnothersPort, r"port 0x1 is none of this end's"),
    (Blocks, r"did not return in 0.2 s"),
    (RaisesInEvent, r"AttributeError: 'RaisesInEvent' object has no attribute 'missing'"),
    (IsNoBackend, r"IsNoBackend has no probe\(\)"),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "says"), SAYS, ids=lambda one: getattr(one, "__name__", ""))
def test_what_it_did_is_told(kind, says):
    with pytest.raises(UserEndError) as caught:
        play(kind)
    assert re.fullmatch(says, caught.value.what), caught.value.what


# what is left behind


class LeavesAMap(Backend):
    def event(self):
        if not self.events:
            self.end.map(self.end.peer_number("ring-ref"))  # HERE
        self.events += 1


class LeavesAPort(Backend):
    def probe(self):
        self.end.open_port(self.event)  # HERE
        super().probe()


class LeavesAPage(Backend):
    def probe(self):
        self.end.page()  # HERE
        super().probe()


class LeavesAReference(Backend):
    def probe(self):
        self.extra = self.end.page()
        self.end.grant(self.extra)  # HERE
        super().probe()

    def close(self):
        if self.end._held.has("page", self.extra):
            self.end._held.drop("page", self.extra)
        super().close()


class LeavesAWatch(Backend):
    def probe(self):
        self.end.store.watch(f"{self.end.path}/mode", lambda path: None)  # HERE
        super().probe()


class LeavesATimer(Backend):
    def close(self):
        super().close()
        self.end.after(10**18, self.event)  # HERE


class RaisesInClose(Backend):
    def close(self):
        raise OSError("in close")  # HERE


LEAVERS = (LeavesAMap, LeavesAPort, LeavesAPage, LeavesAReference, LeavesAWatch, LeavesATimer, RaisesInClose)  # fmt: skip


@pytest.mark.parametrize("kind", LEAVERS, ids=lambda one: one.__name__)
def test_what_is_left_behind_is_told_with_the_line_that_took_it(kind):
    with pytest.raises(UserEndError) as caught:
        play(kind)
    assert (caught.value.file, caught.value.line) == (__file__, marked(kind)), str(caught.value)


def test_nothing_is_told_of_a_driver_that_gives_everything_back():
    play(Backend)


def test_what_was_left_behind_is_given_back_all_the_same():
    from xenpv.testing import leaks, take_census

    with user_blk_backend(Backend, connect=False) as world:
        before = take_census(world.platform)
    assert before
    world = user_blk_backend(LeavesAPort, connect=False)
    world.run()
    before = take_census(world.platform)
    world.connect()
    with pytest.raises(UserEndError):
        world.finish()
    after = take_census(world.platform)
    owners = [line for line in leaks(before, after, lost=False) if line.startswith("dom0")]
    assert owners == []
    world.close()


def test_the_platform_closes_also_under_a_driver_that_fails():
    world = user_blk_backend(RaisesInClose)
    world.close()
    assert world.plugged[0].guard.failed is not None


def test_a_handler_is_not_called_any_more_after_a_misdeed():
    world = user_blk_backend(RaisesInEvent, connect=False)
    with pytest.raises(UserEndError):
        world.connect()
    guard = world.plugged[0].guard
    calls = guard.calls
    world.vbd.notify()
    with pytest.raises(UserEndError):
        world.run()
    assert guard.calls in (0, calls)
    world.close()


# a peer's misdeeds are no misdeeds


class Breaks(Backend):
    def event(self):
        from xenpv.errors import PeerProtocolError

        raise PeerProtocolError("a bad frontend")


def test_a_peers_misdeed_shuts_the_device_and_is_no_error():
    with user_blk_backend(Breaks, connect=False) as world:
        world.vbd.attach()
        world.vbd.announce()
        world.run()
        assert world.vbd.backend_state is XenbusState.CLOSING
        assert world.vbd.backend_key("error") == "22 a bad frontend"


class BreaksLater(Backend):
    def event(self):
        self.events += 1
        if self.events == 2:
            self.end.fatal("enough")


def test_handlers_rest_while_a_device_is_broken_and_work_when_it_begins_anew():
    with user_blk_backend(BreaksLater) as world:
        for _ in range(4):
            world.vbd.notify()
            world.run()
        assert world.driver.events == 2
        world.vbd.state = XenbusState.CLOSED
        world.run()
        world.driver.end.switch_state(XenbusState.INIT_WAIT)
        assert world.driver.end.broken == ""
        world.vbd.connect()
        world.vbd.notify()
        world.run()
        assert world.driver.events > 2


def test_keys_that_lead_nowhere_shut_the_device():
    with user_blk_backend(Backend, connect=False) as world:
        with pytest.raises(LocalProtocolError, match="GNTST_bad_gntref"):
            world.vbd.connect({"ring-ref": "4095"})
        assert world.vbd.backend_state is XenbusState.CLOSING


def test_a_reference_that_no_guest_can_name_is_a_bad_one():
    class Asks(Backend):
        def event(self):
            for ref in (1 << 32, 1 << 63):
                with pytest.raises(GrantError, match="bad_gntref"):
                    self.end.map(ref)
                with pytest.raises(GrantError):
                    self.end.copy_from(ref, 0, 1)

    with user_blk_backend(Asks) as world:
        world.run()


# frontends


class CompletesTwice(Frontend):
    def submit(self, transfer):
        transfer.complete(bytes(512))
        transfer.complete(bytes(512))  # HERE


class CompletesShort(Frontend):
    def submit(self, transfer):
        transfer.complete(bytes(511))  # HERE


class RaisesInSubmit(Frontend):
    def submit(self, transfer):
        transfer.nothing()  # HERE


class LeavesItsRing(Frontend):
    def backend_changed(self, state):
        if state is XenbusState.INIT_WAIT:
            self.extra = self.end.page()  # HERE
        super().backend_changed(state)


class WritesAForeignKey(Frontend):
    def submit(self, transfer):
        self.end.store.write("/local/domain/0/name", repr(transfer))  # HERE


@pytest.mark.parametrize(
    "kind",
    [CompletesTwice, CompletesShort, RaisesInSubmit, LeavesItsRing, WritesAForeignKey],
    ids=lambda one: one.__name__,
)
def test_a_frontends_misdeed_is_told_with_its_line(kind):
    with pytest.raises(UserEndError) as caught, user_blk_frontend(kind) as world:
        world.app.start_read(0, 1)
    assert (caught.value.file, caught.value.line) == (__file__, marked(kind)), str(caught.value)


def test_a_frontend_that_gives_everything_back_is_told_nothing():
    with user_blk_frontend(Frontend) as world:
        reading = world.app.start_read(0, 1)
        world.run()
        assert not reading.done and reading.okay is None
        assert len(world.driver.asked) == 1


class SharesTwice(Frontend):
    """It takes back a page that its backend holds on to."""

    def submit(self, transfer):
        self.shared = self.end.share(b"secret")
        transfer.fail()

    def close(self):
        self.end.unshare(*self.shared)
        super().close()


def test_a_page_that_the_backend_holds_on_to_is_not_used_again_and_no_leftover():
    with user_blk_frontend(SharesTwice) as world:
        world.app.start_read(0, 1)
        pfn, ref = world.driver.shared
        page = world.vbd.map(ref)
        world.driver.end.unshare(pfn, ref)
        taken = [world.driver.end.share() for _ in range(8)]
        assert pfn not in [one for one, _ in taken]
        assert ref not in [one for _, one in taken]
        assert world.vbd.domain.read(page, 0, 6) == b"secret"
        world.vbd.unmap(page)
        for one in taken:
            world.driver.end.unshare(*one)
        assert all("drivers.py" in line for line in world.driver.end.leftovers())
        world.driver.shared = world.driver.end.share()


def test_a_page_that_the_backend_never_lets_go_of_is_no_leftover_of_the_frontend():
    with user_blk_frontend(SharesTwice) as world:
        world.app.start_read(0, 1)
        pfn, ref = world.driver.shared
        hole = world.platform.dom0.holes.alloc()
        world.platform.dom0.gnttab.map(world.domain.domid, ref, hole)
        world.driver.end.unshare(pfn, ref)
        world.driver.shared = world.driver.end.share()


# the watchdog


def test_another_thread_is_watched_without_a_signal(capfd):
    caught = []

    def run():
        try:
            play(LoopsForEver)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    (error,) = caught
    assert isinstance(error, UserEndError), error
    assert error.line == marked(LoopsForEver)
    assert f"xenpv: {shown(__file__)}:{marked(LoopsForEver)} in event" in capfd.readouterr().err


def test_an_alarm_of_somebody_else_goes_on():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 50)
        play(Backend)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 40 < left < 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_alarm_is_off_after_handlers_that_were_preempted():
    from xenpv.testing import explore
    from xenpv.testing.scenarios import BlkClient

    class Loads(Backend):
        def event(self):
            for _ in range(8):
                self.end.load32(self.page, 0)

    def scenario(x):
        world = user_blk_backend(Loads)
        x.adopt(world.platform)
        BlkClient(world.vbd, requests=2).start()
        x.allow_double_fetches()
        x.begin()
        world.platform.loop.run()

    explore(scenario, examples=60).check()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert watchdog().depth == 0


def test_stuck_is_no_exception_that_a_driver_keeps():
    assert not issubclass(Stuck, Exception)


def test_no_thread_is_started_where_there_is_a_signal():
    code = (
        "import threading; from tests.testing.ends.test_containment import Backend, play; "
        "play(Backend); assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
