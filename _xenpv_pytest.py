"""The pytest plugin: whole platforms as fixtures, and what happened in them when a test fails.

Neither xenpv nor hypothesis is imported before a fixture is used: this module is loaded in
every pytest run of an environment that xenpv is installed in.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xenpv import Guest, Platform
    from xenpv.xen.trace import Trace

TAIL_LINES = 20
# Platforms of one test that its failure report speaks of: the newest.
REPORTED_MAX = 3
DISK_BYTES = 1 << 20

# What the present test made, newest last. Traces, not platforms: these keep nothing alive.
_made: deque[tuple[int, Trace]] = deque(maxlen=REPORTED_MAX)


class Worlds:
    """Makes platforms: `worlds(seed=..., **create)`.

    With arguments of `Platform.create` the platform has that guest, connected, as
    `guests[0]`; `name` is "guest" unless given. A platform is closed by `with`, or at the
    end of the session if somebody still has it then.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._open: list[weakref.ref[Platform]] = []

    def __call__(self, *, seed: int | None = None, **create: Any) -> Platform:
        """`seed` None: that of --xenpv-seed. Raises what Platform.create and start raise."""
        from xenpv import Platform

        platform = Platform(seed=self.seed if seed is None else seed)
        _made.append((platform.seed, platform.loop.trace))
        self._open.append(weakref.ref(platform, self._open.remove))
        if create:
            try:
                platform.create(**{"name": "guest", **create}).start()
            except BaseException:
                platform.close()
                raise
        return platform

    def close(self) -> None:
        """Close what is still there."""
        for reference in list(self._open):
            platform = reference()
            if platform is not None:
                platform.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xenpv")
    group.addoption(
        "--xenpv-seed",
        type=_seed,
        default=0,
        metavar="N",
        help="the seed of the platforms that the fixtures make (0)",
    )


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 64:
        raise ValueError(text)
    return number


@pytest.fixture(scope="session")
def worlds(request: pytest.FixtureRequest) -> Iterator[Worlds]:
    """A factory of platforms, `worlds(seed=..., **create)`, which goes well with @given."""
    from xenpv.platform import drivers

    drivers()  # imported now, not in the time of an example, which Hypothesis limits
    factory = Worlds(request.config.getoption("--xenpv-seed"))
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _made.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _made:
        report.sections.append(("xenpv", "\n".join(_what_happened(item))))
    return report


def _what_happened(item: pytest.Item) -> Iterator[str]:
    for seed, trace in _made:
        yield f"platform with seed {seed}, after {trace.clock / 1e9:.9f} virtual seconds:"
        yield from (f"  {line}" for line in trace.tail(TAIL_LINES))
    yield f"again: {_command(item)}"


def _command(item: pytest.Item) -> str:
    from shlex import quote

    return f"pytest {quote(item.nodeid)} --xenpv-seed {item.config.getoption('--xenpv-seed')}"
