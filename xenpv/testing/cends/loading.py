"""load_end: C sources become a factory, as a Python driver's class is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpv.errors import ConfigError
from xenpv.testing.cends.child import Program
from xenpv.testing.cends.compiling import INCLUDE, Built, build
from xenpv.testing.cends.driver import CDriver, Limits, Runtime
from xenpv.testing.cends.local import Library

if TYPE_CHECKING:
    from xenpv.testing.ends.end import End

__all__ = ["INCLUDE", "CEnd", "load_end"]

STEPS: Final = 20_000_000
SECONDS: Final = 5.0


class CEnd:
    """A driver that was built: call it as the worlds of `xenpv.testing.ends` call a factory."""

    def __init__(self, built: Built, *, isolate: bool, limits: Limits, text: str = "") -> None:
        self.built = built
        self.text = text  # `mine.c -DFLAG`: what a replay file says; empty for what it cannot
        self.isolate = isolate
        self.limits = limits

    def __call__(self, end: End, resource: Any = None, /) -> CDriver:
        """A driver of one device."""
        return CDriver(self._start, self.limits, end, resource)

    def _start(self, driver: CDriver) -> Runtime:
        return _image(self.built, self.isolate).start(driver)


@cache
def _image(built: Built, isolate: bool) -> Program | Library:
    """Linked and loaded once in this process."""
    return Program(built.program()) if isolate else Library(built.library())


_built: dict[tuple[object, ...], Built] = {}


def load_end(
    *sources: str | Path,
    include: Sequence[str | Path] = (),
    cflags: Sequence[str] = (),
    compiler: str = "gcc",
    isolate: bool = False,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> CEnd:
    """Compile the C sources of a driver that includes `xenpv_end.h`.

    `isolate`: each end of it is a process of its own, which may crash or be killed. `steps`:
    accesses and basic blocks that one call of the driver may take; `seconds`: of CPU.
    Raises ConfigError with file and line where a source does not compile.
    """
    if not sources:
        raise ConfigError("load_end: expected at least one C source")
    paths = [Path(one) for one in sources]
    for path in paths:
        if not path.is_file():
            raise ConfigError("no such C source", file=str(path))
    folders = [Path(one) for one in include]
    key = (
        *((path.resolve(), path.stat().st_mtime_ns, path.stat().st_size) for path in paths),
        *folders, *cflags, compiler,
    )  # fmt: skip
    if key not in _built:
        _built[key] = build(paths, include=folders, cflags=cflags, compiler=compiler)
    found = _built[key]
    _image(found, isolate)  # links and loads it: what is missing shows here
    plain = (
        len(paths) == 1 and not folders and not isolate and not any(" " in one for one in cflags)
    )
    text = " ".join([os.fspath(paths[0]), *cflags]) if plain and compiler == "gcc" else ""
    return CEnd(found, isolate=isolate, limits=Limits(steps, seconds), text=text)
