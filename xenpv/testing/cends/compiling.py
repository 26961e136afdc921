"""Building a C driver: with the access hooks of gcc's sanitizers, and without their runtime."""

from __future__ import annotations

import atexit
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError
from xenpv.testing.cends.wire import HERE

INCLUDE: Final = HERE / "include"
RUNTIME: Final = HERE / "runtime"
LOCAL: Final = ("calls.c", "entry.c", "heap.c", "region.c", "tsan.c")
_COPIES: Final = ("memcpy", "memmove", "memset", "memcmp")
_HEAP: Final = ("malloc", "calloc", "realloc", "free", "strdup")
# What a sanitizer would have inlined is seen as a call instead (spec: a copy of a structure).
SEEN: Final = (
    "-fsanitize=thread",
    "-fsanitize-coverage=trace-pc",
    *(f"-fno-builtin-{name}" for name in _COPIES),
    *(f"-fno-builtin-{name}" for name in _HEAP),  # a pair of malloc and free would be left out
    "-Wno-tsan",
)
# Of the driver, not of the runtime: its calls of these are seen, or watched.
WRAPPED: Final = (*_COPIES, *_HEAP, "abort", "exit", "__assert_fail")
# Where a program that is not there comes from: Debian's packages.
PACKAGES: Final = {"gcc": "gcc", "objcopy": "binutils"}
_ERROR: Final = re.compile(r"^(.+?):(\d+):(?:(\d+):)? (?:fatal )?error: (.*)$", re.MULTILINE)
_UNDEFINED: Final = re.compile(r"undefined reference to `(.*?)'")


@attrs.frozen
class Built:
    """A driver as object files, and what is linked from them when it is first needed."""

    directory: Path
    objects: tuple[Path, ...]
    compiler: str

    def library(self) -> Path:
        """To be loaded into this process."""
        return self._linked("driver.so", ("-shared",), LOCAL)

    def program(self) -> Path:
        """To be run in a process of its own."""
        return self._linked("driver", ("-pie",), (*LOCAL, "remote.c"))

    def _linked(self, name: str, how: Sequence[str], runtime: Sequence[str]) -> Path:
        path = self.directory / name
        if not path.exists():
            objects = [*self.objects, *(_runtime(self.compiler) / f"{one}.o" for one in runtime)]
            _run(
                [self.compiler, *how, "-Wl,-z,now,-z,relro,-z,defs", "-o", path, *objects],
                "its parts fit together",
            )
        return path


@cache
def scratch() -> Path:
    """A directory of this process; it goes when the process ends."""
    directory = Path(tempfile.mkdtemp(prefix="xenpv-cends-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@cache
def _runtime(compiler: str) -> Path:
    """The runtime's own objects."""
    directory = Path(tempfile.mkdtemp(prefix="runtime-", dir=scratch()))
    for source in (*LOCAL, "remote.c"):
        flags = ("-c", "-g", "-O2", "-fPIC", "-D_GNU_SOURCE", "-fno-stack-protector")
        output = directory / f"{source}.o"
        _run([compiler, *flags, f"-I{INCLUDE}", "-o", output, RUNTIME / source], "a C compiler")
    return directory


def build(
    sources: Sequence[Path], *, include: Sequence[Path], cflags: Sequence[str], compiler: str
) -> Built:
    """Compile a driver. ConfigError where it does not, or gcc or binutils are not there."""
    directory = Path(tempfile.mkdtemp(prefix="driver-", dir=scratch()))
    names = directory / "wrapped"
    names.write_text("".join(f"{name} __wrap_{name}\n" for name in WRAPPED))
    objects = []
    for number, source in enumerate(sources):
        output = directory / f"{number}.o"
        folders = [f"-I{one}" for one in (INCLUDE, *include)]
        _run(
            [compiler, "-c", "-g", "-O1", "-fPIC", *SEEN, *folders, *cflags, "-o", output,
             source.resolve()],
            "C that compiles",
        )  # fmt: skip
        _run(["objcopy", f"--redefine-syms={names}", output], "binutils' objcopy")
        objects.append(output)
    return Built(directory, tuple(objects), compiler)


def _run(command: Sequence[str | Path], expected: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler on the user's own driver
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and command[0] in PACKAGES:
            package = PACKAGES[str(command[0])]
            lacking = f"there is no {command[0]}, which builds C drivers: apt-get install {package}"
            raise ConfigError(lacking) from error
        raise ConfigError(f"{command[0]}: {error.strerror}: expected {expected}") from error
    if not done.returncode:
        return
    text = done.stderr or done.stdout
    found = _ERROR.search(text)
    if found:
        raise ConfigError(
            f"{found[4]}\n{text.rstrip()}",
            file=found[1], line=int(found[2]), column=int(found[3] or 0),
        )  # fmt: skip
    missing = sorted(set(_UNDEFINED.findall(text)))
    raise ConfigError(
        f"{command[0]}: expected {expected}: "
        + (f"undefined: {', '.join(missing)}" if missing else text.rstrip())
    )
