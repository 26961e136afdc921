"""The pytest plugin: whole platforms as fixtures, and what happened in them when a test fails.

Neither xenpv nor hypothesis is imported before a fixture is used: this module is loaded in
every pytest run of an environment that xenpv is installed in.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from xenpv import Guest, Platform
    from xenpv.host.network import Bridge
    from xenpv.net.adapter import Adapter
    from xenpv.testing import BackWorld, RawBlkFront, RawNetFront, RawWorld, Result
    from xenpv.vbd.disk import Disk as GuestDisk
    from xenpv.xen.trace import Trace

TAIL_LINES = 20
# Platforms of one test that its failure report speaks of: the newest.
REPORTED_MAX = 3
DISK_BYTES = 1 << 20
ARTEFACTS = ".xenpv"


class Made(NamedTuple):
    """What the present test made: its seed, trace, and the platform while somebody has it;
    `packets` is a pcapng file of what crossed its bridges, None unless artefacts are wanted.
    """

    seed: int
    trace: Trace
    platform: weakref.ref[Platform]
    packets: BytesIO | None


# Newest last.
_made: deque[Made] = deque(maxlen=REPORTED_MAX)


class Worlds:
    """Makes platforms: `worlds(seed=..., **create)`.

    With arguments of `Platform.create` the platform has that guest, connected, as
    `guests[0]`; `name` is "guest" unless given. A platform is closed by `with`, or at the
    end of the session if somebody still has it then.
    """

    def __init__(self, seed: int, *, captures: bool = False) -> None:
        self.seed = seed
        self.captures = captures
        self._open: list[weakref.ref[Platform]] = []

    def __call__(self, *, seed: int | None = None, **create: Any) -> Platform:
        """`seed` None: that of --xenpv-seed. Raises what Platform.create and start raise."""
        from xenpv import Platform

        platform = Platform(seed=self.seed if seed is None else seed)
        self.remember(platform)
        if create:
            try:
                platform.create(**{"name": "guest", **create}).start()
            except BaseException:
                platform.close()
                raise
        return platform

    def remember(self, platform: Platform) -> None:
        """A platform of the present test: its report speaks of it."""
        packets = _capture(platform) if self.captures else None
        _made.append(Made(platform.seed, platform.loop.trace, weakref.ref(platform), packets))
        self._open.append(weakref.ref(platform, self._open.remove))

    def close(self) -> None:
        """Close what is still there."""
        for reference in list(self._open):
            platform = reference()
            if platform is not None:
                platform.close()


def _capture(platform: Platform) -> BytesIO:
    """A pcapng file in memory of every bridge of a platform."""
    from xenpv.host.pcapng import PcapngCapture, PcapngWriter

    file = BytesIO()
    writer = PcapngWriter(file)

    def watch(bridge: Bridge) -> None:
        bridge.taps.append(PcapngCapture(writer))

    platform.network.watchers.append(watch)
    return file


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xenpv")
    group.addoption(
        "--xenpv-seed",
        type=_seed,
        default=0,
        metavar="N",
        help="the seed of the platforms that the fixtures make (0)",
    )
    group.addoption(
        "--xenpv-artefacts",
        metavar="DIR",
        help=f"where replay files, traces and store dumps of failures go ({ARTEFACTS} for replay "
        "files; the others are not written)",
    )


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 64:
        wrong = f"a seed is a number from 0 to 2^64 - 1, not {text!r}"
        raise argparse.ArgumentTypeError(wrong)
    return int(text)


@pytest.fixture(scope="session")
def worlds(request: pytest.FixtureRequest) -> Iterator[Worlds]:
    """A factory of platforms, `worlds(seed=..., **create)`, which goes well with @given."""
    from xenpv.guest import drivers

    drivers()  # imported now, not in the time of an example, which Hypothesis limits
    captures = _artefacts(request.config) is not None
    factory = Worlds(request.config.getoption("--xenpv-seed"), captures=captures)
    yield factory
    factory.close()


@pytest.fixture
def xen(worlds: Worlds) -> Iterator[Platform]:
    """A platform without guests, closed when the test ends."""
    with worlds() as platform:
        yield platform


@pytest.fixture
def guest(xen: Platform) -> Guest:
    """A connected Windows guest: a disk of 1 MiB in memory, and an interface on xenbr0."""
    from xenpv import Disk, MemoryImage, Vif

    image = MemoryImage(bytearray(DISK_BYTES))
    return xen.create(name="guest", disks=[Disk(image)], vifs=[Vif(bridge="xenbr0")]).start()


@pytest.fixture
def vbd(guest: Guest) -> GuestDisk:
    """The disk of `guest`: SCSI requests over XenVbd and blkback."""
    return guest.disks[0]


@pytest.fixture
def vif(guest: Guest) -> Adapter:
    """The network adapter of `guest`: frames over XenVif and netback."""
    return guest.nets[0]


@pytest.fixture
def raw_world(worlds: Worlds) -> Iterator[RawWorld]:
    """A guest without a kernel whose frontends, of a disk and an interface, are in the test's
    hands, connected to the real backends.
    """
    from xenpv.testing import world_raw

    with world_raw(worlds.seed) as world:
        worlds.remember(world.platform)
        yield world


@pytest.fixture
def raw_vbd(raw_world: RawWorld) -> RawBlkFront:
    """The block frontend of `raw_world`."""
    return raw_world.vbd


@pytest.fixture
def raw_vif(raw_world: RawWorld) -> RawNetFront:
    """The network frontend of `raw_world`."""
    return raw_world.vif


@pytest.fixture
def raw_back(worlds: Worlds) -> Iterator[BackWorld]:
    """A Windows guest whose disk and interface have backends in the test's hands:
    `raw_back.vbd` and `raw_back.vif`, connected.
    """
    from xenpv.testing import world_back

    with world_back(worlds.seed) as world:
        worlds.remember(world.platform)
        yield world


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """`xenpv.testing.explore` with the seed of --xenpv-seed, which writes replay files:
    `explore(scenario).check()`.
    """
    from functools import partial

    from xenpv.testing import explore as explored

    directory = _artefacts(request.config) or request.config.rootpath / ARTEFACTS
    seed = request.config.getoption("--xenpv-seed")
    return partial(explored, seed=seed, directory=directory)


def _artefacts(config: pytest.Config) -> Path | None:
    given = config.getoption("--xenpv-artefacts")
    return None if given is None else Path(given)


def pytest_configure(config: pytest.Config) -> None:
    directory = _artefacts(config)
    if directory is not None and directory.exists() and not directory.is_dir():
        raise pytest.UsageError(
            f"--xenpv-artefacts {directory}: exists and is no directory: expected where files "
            "of failures go"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _made.clear()
    reports = sys.modules.get("xenpv.testing.reports")
    if reports is not None:
        reports.forget()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A defect of the zoo that a test left on would make every later test meaningless."""
    zoo = sys.modules.get("xenpv.testing.zoo.defect")
    if zoo is not None and zoo.active():
        left = ", ".join(zoo.active())
        zoo.turn_off()
        pytest.fail(f"{item.nodeid} left {left} of the zoo on: use `with zoo.defect(...)`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.failed:
        return report
    try:
        report.sections += _sections(item)
    except OSError as error:
        wrong = f"artefacts cannot be written: {error.filename}: {error.strerror}"
        report.sections.append(("xenpv", f"{wrong}\nagain: {_command(item)}"))
    return report


def _sections(item: pytest.Item) -> Iterator[tuple[str, str]]:
    # Nobody explored anything as long as this module is not there.
    reports = sys.modules.get("xenpv.testing.reports")
    if reports is not None:
        directory = _artefacts(item.config) or item.config.rootpath / ARTEFACTS
        for failure in reports.failures():
            yield "xenpv exploration", "\n".join(failure.section(directory))
    if _made:
        yield "xenpv", "\n".join(_what_happened(item))


def _what_happened(item: pytest.Item) -> Iterator[str]:
    for number, made in enumerate(_made):
        clock = made.trace.clock / 1e9
        yield f"platform with seed {made.seed}, after {clock:.9f} virtual seconds:"
        yield from (f"  {line}" for line in made.trace.tail(TAIL_LINES))
        platform = made.platform()
        if platform is not None and not platform.hypervisor.closed:
            yield from _what_is_there(item, number, platform)
        if made.packets is not None:
            path = _artefact(item, number, "pcapng")
            path.write_bytes(made.packets.getvalue())
            yield f"pcapng: {path}"
    yield f"again: {_command(item)}"


def _what_is_there(item: pytest.Item, number: int, platform: Platform) -> Iterator[str]:
    """Ring entries, and where the trace and the store went, of a platform that still runs."""
    from xenpv.testing import reports

    tables = reports.tables(platform)
    if tables:
        yield "rings:"
        yield from (f"  {line}" for line in tables[: reports.TABLE_LINES_MAX])
    if _artefacts(item.config) is None:
        return
    for suffix, lines in (("trace", reports.tail(platform)), ("store", reports.store(platform))):
        path = _artefact(item, number, suffix)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield f"{suffix}: {path}"


def _artefact(item: pytest.Item, number: int, suffix: str) -> Path:
    """Where an artefact of a test's platform goes; the directory is there."""
    directory = _artefacts(item.config) or item.config.rootpath / ARTEFACTS
    directory.mkdir(parents=True, exist_ok=True)
    name = "".join(one if one.isalnum() else "-" for one in item.name)
    return directory / f"{name}-{number}.{suffix}"


def _command(item: pytest.Item) -> str:
    from shlex import quote

    return f"pytest {quote(item.nodeid)} --xenpv-seed {item.config.getoption('--xenpv-seed')}"
