"""The balloon thread: memory/target in every shape, its states, suspend, and the FDO's patience."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.world import World
from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.abi.xs import XS
from xenpv.bus.balloon import BalloonInterface
from xenpv.bus.balloon_thread import BalloonState, BalloonThread
from xenpv.bus.range_set import RangeSetInterface
from xenpv.bus.registry import Registry
from xenpv.bus.startoptions import StartOptions
from xenpv.bus.suspend import BalloonSuspendMutex
from xenpv.bus.xenbus import XenBus
from xenpv.errors import LocalProtocolError
from xenpv.host.domainconfig import DomainConfig, Personality
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Task

HOME = "/local/domain/1"
IDLE, BLOCKED = BalloonState.IDLE, BalloonState.BLOCKED
ADJUSTING, RETRYING, STOPPED = BalloonState.ADJUSTING, BalloonState.RETRYING, BalloonState.STOPPED


@attrs.define(eq=False)
class Scene:
    """A guest of 1024 pages, 4 MiB, whose FDO is this test."""

    world: World
    thread: BalloonThread
    balloon: BalloonInterface
    exclusion: BalloonSuspendMutex
    ready: Task
    log: list[str]
    bugs: list[tuple[int, str]]
    ran: list[str]

    def write(self, key: str, value: object) -> None:
        self.world.write(f"{HOME}/{key}", str(value))

    def remove(self, key: str) -> None:
        self.world.client.call(XS.RM, f"{HOME}/{key}\0".encode())

    def target(self, kib: object) -> None:
        self.write("memory/target", kib)

    def start(self) -> None:
        self.thread.start(self.ready)
        self.world.loop.run()

    def fail(self, inflation: str = "1") -> None:
        self.write("FIST/balloon/inflation", inflation)

    def seconds(self, count: float) -> None:
        self.world.loop.advance(round(count * NS_PER_S))

    @property
    def keys(self) -> tuple[str | None, str | None]:
        """control/feature-balloon and control/balloon-active."""
        listed = self.world.client.call(XS.DIRECTORY, f"{HOME}/control\0".encode()).split(b"\0")
        return tuple(
            self.world.read(f"{HOME}/control/{key}") if key.encode() in listed else None
            for key in ("feature-balloon", "balloon-active")
        )  # type: ignore[return-value]  # two of them

    @property
    def out(self) -> int:
        """Pages that Xen counts less than at the start."""
        return 1032 - self.world.guest.tot_pages


def scene(world: World, *, windows: bool = True, control: bool = True) -> Scene:
    _, store = world.bus_store()
    world.write(f"{HOME}/control", "")
    world.chmod(f"{HOME}/control", "n1" if control else "n0", "r1")
    for key, value in (("static-max", 4096), ("target", 4096), ("videoram", 0)):
        world.write(f"{HOME}/memory/{key}", str(value))
    balloon = BalloonInterface(world.guest, store, RangeSetInterface())
    balloon.acquire()
    exclusion = BalloonSuspendMutex()
    log: list[str] = []
    bugs: list[tuple[int, str]] = []
    ran: list[str] = []
    thread = BalloonThread(
        balloon,
        store,
        exclusion,
        log=log.append,
        bugcheck=lambda reason: bugs.append((world.loop.now, reason)),
        windows=windows,
    )
    ready = world.guest.task("ready", lambda: ran.append("ready"))
    return Scene(world, thread, balloon, exclusion, ready, log, bugs, ran)


@pytest.fixture
def s(world: World) -> Scene:
    return scene(world)


# static-max, videoram, target (None: absent); the size that follows, None where it is left alone.
TARGETS = [
    ("static-max", "4096", "0", "4096", 0),
    ("half", "4096", "0", "2048", 512),
    ("a part of a page", "4096", "0", "2051", 512),
    ("above static-max", "4096", "0", "999999", 0),
    ("nothing", "4096", "0", "0", 1024),
    ("beside the video memory", "4096", "1024", "2048", 256),
    ("beside a part of a page of it", "4096", "1023", "2048", 256),
    ("no videoram", "4096", None, "2048", 512),
    ("videoram is no number", "4096", "much", "2048", 512),
    ("videoram is all there is", "4096", "4096", "2048", 0),
    ("videoram is more than there is", "4096", "4097", "2048", None),
    ("no target", "4096", "0", None, None),
    ("target is empty", "4096", "0", "", 1024),
    ("target is no number", "4096", "0", "lots", 1024),
    ("target with a unit", "4096", "0", "2048kB", 512),
    ("target after blanks", "4096", "0", " 2048", 512),
    ("target is hexadecimal", "4096", "0", "0x800", 1024),
    ("target is negative", "4096", "0", "-1", 0),
    ("target is 2^64", "4096", "0", "18446744073709551616", 0),
    ("target is 2^63", "4096", "0", "9223372036854775808", 0),
    ("target has a NUL", "4096", "0", "2048\0x", 512),
    ("no static-max", None, "0", "2048", None),
    ("static-max is 0", "0", "0", "2048", None),
    ("static-max is no number", "max", "0", "2048", None),
    ("static-max is more than the guest has", "8192", "0", "8192", 0),
]


@pytest.mark.parametrize(
    ("static_max", "videoram", "target", "size"),
    [row[1:] for row in TARGETS],
    ids=[row[0] for row in TARGETS],
)
def test_what_the_keys_ask_for(
    s: Scene, static_max: str | None, videoram: str | None, target: str | None, size: int | None
) -> None:
    for key, value in (("static-max", static_max), ("videoram", videoram), ("target", target)):
        if value is None:
            s.remove(f"memory/{key}")
        else:
            s.write(f"memory/{key}", value)
    s.start()
    assert s.balloon.size == s.out == (size or 0)
    assert s.thread._wanted() == size
    assert (s.thread.state, s.ran) == (IDLE, ["ready"])


def test_a_target_beyond_reach_is_tried_for_ever_and_does_not_keep_the_loop(s: Scene) -> None:
    s.world.guest.pages.alloc(200)
    s.start()
    s.target("everything")
    s.world.loop.run()
    assert (s.thread.state, s.balloon.size, s.world.loop.now) == (RETRYING, 824, 0)
    s.seconds(5.5)
    assert (s.thread.state, s.thread.failures) == (RETRYING, 6)
    s.target(4096)
    s.world.loop.run()
    assert (s.thread.state, s.balloon.size, s.out) == (IDLE, 0, 0)


def test_static_max_is_read_once(s: Scene) -> None:
    s.start()
    s.write("memory/static-max", 2048)
    s.write("memory/videoram", 1024)
    s.target(3072)
    s.world.loop.run()
    assert s.balloon.size == 256


def test_static_max_that_comes_late_is_found_at_the_next_target(s: Scene) -> None:
    s.remove("memory/static-max")
    s.start()
    s.write("memory/static-max", 4096)
    s.world.loop.run()
    assert s.balloon.size == 0
    s.target(3072)
    s.world.loop.run()
    assert s.balloon.size == 256


def test_the_start_asks_five_things_of_the_store(s: Scene) -> None:
    before = s.thread._store.requests
    s.start()
    assert s.thread._store.requests - before == 5


def test_it_follows_the_target_up_and_down(s: Scene) -> None:
    s.start()
    sizes = []
    for kib in (2048, 1024, 3000, 4096):
        s.target(kib)
        s.world.loop.run()
        sizes.append((s.balloon.size, s.out))
    assert sizes == [(512, 512), (768, 768), (274, 274), (0, 0)]


def test_it_tells_that_it_can_and_that_it_works(s: Scene) -> None:
    seen: list[str] = []
    s.start()
    assert s.keys == ("1", None)
    watch = s.thread._store.watch(
        "control/balloon-active", lambda _path: seen.append(s.keys[1] or "")
    )
    s.fail()
    s.target(2048)
    s.world.loop.run()
    assert s.keys == ("1", "1")
    s.fail("0")
    s.seconds(1)
    assert s.keys == ("1", "0")
    assert seen == ["", "1", "0"]
    watch.unwatch()


def test_linux_tells_nothing(world: World) -> None:
    s = scene(world, windows=False)
    s.start()
    s.target(2048)
    s.world.loop.run()
    assert (s.keys, s.out) == ((None, None), 512)
    s.thread.stop()


def test_keys_that_may_not_be_written_are_left_away(world: World) -> None:
    s = scene(world, control=False)
    s.start()
    s.target(2048)
    s.world.loop.run()
    assert (s.keys, s.out, s.thread.state) == ((None, None), 512, IDLE)
    s.thread.stop()


def test_what_failed_is_tried_again_every_second(s: Scene) -> None:
    s.start()
    s.fail()
    s.target(2048)
    s.world.loop.run()
    failures = []
    for _ in range(3):
        failures.append(s.thread.failures)
        s.seconds(1)
    assert failures == [1, 2, 3]
    s.fail("0")
    s.seconds(0.9)
    assert (s.thread.state, s.out) == (RETRYING, 0)
    s.seconds(0.1)
    assert (s.thread.state, s.out) == (IDLE, 512)
    s.seconds(10)
    assert s.thread.failures == 4


REASONS_TO_STOP = [
    ("the size is right by then", lambda s: s.target(4096)),
    ("the target is gone by then", lambda s: s.remove("memory/target")),
]


@pytest.mark.parametrize(
    "change", [row[1] for row in REASONS_TO_STOP], ids=[row[0] for row in REASONS_TO_STOP]
)
def test_a_retry_that_finds_nothing_to_do_lets_go(s: Scene, change: Any) -> None:
    """The driver stays active here, and blocks every suspend from then on."""
    s.start()
    s.fail()
    s.target(2048)
    s.world.loop.run()
    assert (s.thread.active, s.exclusion.owner) == (True, "balloon")
    change(s)
    s.world.loop.run()
    assert (s.thread.state, s.exclusion.owner, s.keys[1]) == (IDLE, "", "0")
    s.seconds(10)
    assert s.thread.failures == 1


def test_it_does_not_begin_while_the_guest_suspends(s: Scene) -> None:
    s.start()
    suspend = s.world.guest.task("suspend", lambda: s.ran.append("suspend"))
    assert s.exclusion.try_acquire("suspend", suspend)
    s.target(2048)
    s.world.loop.run()
    assert (s.thread.state, s.out, s.keys[1]) == (BLOCKED, 0, None)
    s.exclusion.release("suspend")
    s.world.loop.run()
    assert (s.thread.state, s.out) == (IDLE, 512)
    assert s.ran == ["ready"]


def test_a_suspend_that_comes_late_is_woken_at_its_end(s: Scene) -> None:
    s.start()
    s.fail()
    s.target(2048)
    s.world.loop.run()
    suspend = s.world.guest.task("suspend", lambda: s.ran.append("suspend"))
    for _ in range(3):
        assert not s.exclusion.try_acquire("suspend", suspend)
    s.seconds(3)
    assert s.ran == ["ready"]
    s.fail("0")
    s.seconds(1)
    assert s.ran == ["ready", "suspend"]
    assert s.exclusion.try_acquire("suspend", suspend)


def test_only_the_owner_can_release(s: Scene) -> None:
    one, two = (s.world.guest.task(name, lambda: None) for name in "ab")
    assert s.exclusion.try_acquire("one", one)
    with pytest.raises(LocalProtocolError, match="two releases what one holds"):
        s.exclusion.release("two")
    assert not s.exclusion.try_acquire("two", two)
    s.exclusion.release("one")
    with pytest.raises(LocalProtocolError, match="one releases what nobody holds"):
        s.exclusion.release("one")


def test_a_guest_that_finds_pages_slowly_takes_its_time(s: Scene) -> None:
    s.start()
    s.balloon.mm.ns_per_page = NS_PER_MS // 2
    s.target(2048)
    s.seconds(0.2)
    # The chunk's pages are gone, the time for them is not yet over.
    assert (s.thread.state, s.out) == (ADJUSTING, 512)
    s.target(1024)
    s.seconds(0.05)
    assert (s.thread.state, s.out) == (ADJUSTING, 512)
    s.seconds(0.01)
    assert (s.thread.state, s.out) == (ADJUSTING, 768)
    s.world.loop.run()
    assert (s.thread.state, s.thread.failures) == (IDLE, 0)
    assert s.world.loop.now == 384 * NS_PER_MS


def test_too_slow_a_chunk_is_a_failure_and_the_retry_finds_it_done(s: Scene) -> None:
    s.start()
    s.balloon.mm.ns_per_page = 2 * NS_PER_MS
    s.target(4000)
    s.seconds(0.1)
    assert (s.thread.state, s.out, s.thread.failures) == (RETRYING, 24, 1)
    s.seconds(1)
    assert (s.thread.state, s.thread.failures, s.keys[1]) == (IDLE, 1, "0")


def test_the_start_waits_for_it_warns_and_gives_up(s: Scene) -> None:
    s.fail()
    s.target(2048)
    s.thread.start(s.ready)
    s.seconds(9.9)
    assert (s.thread.waiting, s.log) == (True, [])
    s.seconds(0.1)
    assert s.log == ["xenbus: waiting for balloon\n"]
    s.seconds(1189.9)
    assert s.bugs == []
    s.world.loop.run()
    assert [when for when, _ in s.bugs] == [1200 * NS_PER_S]
    assert (s.ran, len(s.log)) == ([], 1)


def test_the_start_goes_on_when_it_is_idle(s: Scene) -> None:
    s.fail()
    s.target(2048)
    s.thread.start(s.ready)
    s.seconds(15)
    s.fail("0")
    s.seconds(1)
    assert (s.thread.waiting, s.ran) == (False, ["ready"])
    s.seconds(1200)
    assert (s.bugs, s.ran, len(s.log)) == ([], ["ready"], 1)


def test_later_adjustments_are_nobodys_to_wait_for(s: Scene) -> None:
    s.start()
    s.fail()
    s.target(2048)
    s.seconds(1500)
    assert (s.thread.state, s.bugs, s.log, s.ran) == (RETRYING, [], [], ["ready"])


def test_the_watch_may_be_all_that_it_wants_to_be_told(s: Scene) -> None:
    s.thread.start()
    s.target(2048)
    s.world.loop.run()
    assert (s.out, s.ran) == (512, [])


def test_stopped_it_does_nothing_and_leaves_nothing(s: Scene) -> None:
    s.start()
    s.fail()
    s.target(2048)
    s.seconds(2)
    s.thread.stop()
    assert (s.thread.state, s.exclusion.owner, s.keys) == (STOPPED, "", (None, "0"))
    assert s.thread._store.watches() == []
    s.fail("0")
    s.seconds(10)
    assert (s.out, s.thread.failures) == (0, 3)
    s.thread.stop()


def test_the_balloon_survives_a_suspend(s: Scene) -> None:
    """Late, the FDO goes to D3 and back."""
    s.start()
    s.target(2048)
    s.world.loop.run()
    s.thread.stop()
    assert (s.balloon.size, s.out) == (512, 512)
    s.thread.start()
    s.world.loop.run()
    assert (s.balloon.size, s.keys) == (512, ("1", "0"))
    s.target(4096)
    s.world.loop.run()
    assert (s.balloon.size, s.out) == (0, 0)


def test_an_adjustment_that_a_stop_cut_short_goes_on_after_the_start(s: Scene) -> None:
    s.start()
    s.balloon.mm.ns_per_page = NS_PER_MS // 2
    s.target(2048)
    s.seconds(0.1)
    assert s.thread.state is ADJUSTING
    s.thread.stop()
    s.seconds(1)
    s.target(1024)
    s.thread.start()
    s.world.loop.run()
    assert (s.thread.state, s.out) == (IDLE, 768)


OPTIONS = [
    (None, True, False), ("", True, False), ("XEN:BALLOON=ON", True, False),
    ("XEN:BALLOON=OFF", False, False), ("NOEXECUTE=OPTIN XEN:BALLOON=OFF XEN:WATCHDOG=5", False, False),
    ("XEN:BALLOON=OFF XEN:BALLOON=ON", False, False), ("xen:balloon=off", True, False),
    ("XEN:BALLOON=off", True, True), ("XEN:BALLOON=", True, True), ("XXEN:BALLOON=OFF", True, False),
    (7, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("options", "enabled", "warns"), OPTIONS)
def test_start_option(options: Any, enabled: bool, warns: bool) -> None:
    registry = Registry({"Control": {"SystemStartOptions": options}} if options is not None else {})
    found = StartOptions.of(registry)
    assert found.balloon is enabled
    assert bool(found.warnings) is warns


# The whole platform.


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=7) as platform:
        yield platform


def _target(xen: Platform, domid: int, kib: int) -> None:
    xen.toolstack.xs.write(f"/local/domain/{domid}/memory/target", str(kib))


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_dom0_sets_the_memory_of_a_guest_at_work(xen: Platform, personality: str) -> None:
    image = MemoryImage(bytearray(512 * 512))
    guest = xen.create(name="g", disks=[Disk(image)], vifs=[Vif()], personality=personality).start()
    domain, start = guest.created.domain, guest.created.domain.tot_pages
    # 64 MiB, of which 8 are video memory that the target leaves out.
    for kib, out in ((40 * 1024, 4096), (8 * 1024, 12_288), (56 * 1024, 0)):
        _target(xen, guest.domid, kib)
        xen.run()
        assert start - domain.tot_pages == out
        guest.disks[0].write(0, b"x" * 4096)
        assert guest.disks[0].read(0, 8) == b"x" * 4096
    assert guest.shutdown() == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_populated_on_demand_gives_the_rest_back_before_its_devices_connect(
    xen: Platform, personality: str
) -> None:
    config = DomainConfig(
        name="g", memory_mib=64, maxmem_mib=256, personality=Personality(personality)
    )
    guest = xen.create_from(config)
    assert guest.created.domain.tot_pages == 256 * 256 + 8
    guest.start()
    # A MiB less than memory, as libxl sets it; two are holes, for grant table and shared_info.
    assert guest.created.domain.tot_pages == 63 * 256 + 8 - 2


def test_no_device_connects_before_the_balloon_is_idle(xen: Platform) -> None:
    config = DomainConfig(name="g", memory_mib=64, maxmem_mib=128)
    guest = xen.create_from(config)
    key = f"/local/domain/{guest.domid}/FIST/balloon/inflation"
    xen.toolstack.xs.write(key, "1")
    xen.toolstack.unpause(guest.created)
    xen.advance(5)
    assert guest.bus is not None
    assert guest.bus.pdos == {}
    xen.toolstack.xs.write(key, "0")
    xen.advance(1)
    assert list(guest.bus.pdos) == ["IFACE", "CONS"]


def test_a_start_that_waits_for_20_minutes_is_a_crash(xen: Platform) -> None:
    guest = xen.create_from(DomainConfig(name="g", memory_mib=64, maxmem_mib=128))
    xen.toolstack.xs.write(f"/local/domain/{guest.domid}/FIST/balloon/inflation", "1")
    xen.toolstack.unpause(guest.created)
    xen.run()
    assert guest.created.domain.shutdown_code == 3
    assert xen.loop.now == 1200 * NS_PER_S
    assert "waiting for balloon" in guest.console.text
    assert "the balloon thread is not idle" in guest.console.text


def test_without_a_balloon_the_target_is_nothing_to_a_guest(world: World) -> None:
    world.write(f"{HOME}/memory/static-max", "4096")
    world.write(f"{HOME}/memory/target", "2048")
    registry = Registry({"Control": {"SystemStartOptions": "XEN:BALLOON=OFF"}})
    bus = XenBus(world.guest, {}, registry=registry)
    bus.start()
    world.loop.run()
    assert (bus.balloon, bus.balloon_thread) == (None, None)
    assert world.guest.tot_pages == 1032 - 2


def test_holes_in_the_bar_by_the_registry(world: World) -> None:
    registry = Registry({"Services\\XENBUS\\Parameters": {"UseMemoryHole": 0}})
    bus = XenBus(world.guest, {}, registry=registry)
    bus.gnttab.reserve(512)
    assert world.guest.tot_pages == 1032
