"""A driver loaded into this process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi import _kernel
from xenpv.errors import ConfigError
from xenpv.testing.cends.lines import Lines
from xenpv.testing.cends.wire import ENDING, RESULT_ABORT, Blocks, Call, Entry, Failure, ffi
from xenpv.testing.ends import blame

if TYPE_CHECKING:
    from xenpv.testing.cends.driver import CDriver
    from xenpv.testing.ends.blame import Place

ABORTED: Final = ENDING["ENDED_ABORTED"]
FAILED: Final = ENDING["ENDED_FAILED"]


class Library:
    """A driver's shared object; it stays loaded."""

    def __init__(self, path: Path) -> None:
        try:
            self.lib: Any = ffi.dlopen(str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
        self.base = int(self.lib.xenpv_open())
        self.lines = Lines(path)

        self._living: list[weakref.ref[LocalRuntime]] = []

    def start(self, driver: CDriver) -> LocalRuntime:
        """A new end of the driver. ConfigError: it has too many.

        Ends of platforms that are closed are freed first, whoever still knows them: as long as
        one lives, the driver's static data are what they became.
        """
        for reference in self._living:
            runtime = reference()
            if runtime is not None and runtime.outlived:
                runtime.free()
        made = LocalRuntime(self, driver)
        living = [one for one in self._living if one() is not None]
        self._living = [*living, weakref.ref(made)]
        return made


class LocalRuntime:
    """One end of it."""

    def __init__(self, library: Library, driver: CDriver) -> None:
        self._library = library
        self._handle = ffi.new_handle(self)
        self._driver = weakref.ref(driver)
        self.raised: BaseException | None = None
        domain, end = driver.domain, driver.end
        hypervisor = domain._hypervisor
        self._hypervisor = weakref.ref(hypervisor)
        kernel: Any = _kernel
        lib = library.lib
        self._end = lib.xenpv_end_new(
            _host_call,
            ffi.cast("void *", int(kernel.ffi.cast("uintptr_t", _access()))),
            self._handle,
            ffi.cast("void *", int(kernel.ffi.cast("uintptr_t", hypervisor.machine))),
            hypervisor.arena.descriptor,
            end.domid,
            end.peer_domid,
            end.path.encode(),
            end.peer_path.encode(),
        )
        if self._end == ffi.NULL:
            raise ConfigError("too many ends of one driver live at once")
        self._free = weakref.finalize(self, lib.xenpv_end_free, self._end)

    def free(self) -> Blocks:
        """What it left on its heap; nothing of it is mapped any more. Again: nothing."""
        if not self._free.alive:
            return Blocks()
        size, pc = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        count = self._library.lib.xenpv_end_blocks(self._end, size, pc)
        self._free()
        return Blocks(count, size[0], pc[0])

    @property
    def outlived(self) -> bool:
        """Whether its platform is closed, or gone."""
        hypervisor = self._hypervisor()
        return hypervisor is None or hypervisor.closed

    @property
    def alive(self) -> bool:
        return bool(self._free.alive)

    def enter(self, entry: Entry) -> int | Failure:
        """What the driver's function returned, or why it was stopped.

        What Python raised while it was asked, or the access hook, comes out again.
        """
        result = ffi.new("int64_t *")
        given = ffi.NULL if entry.data is None else ffi.from_buffer(entry.data)
        ending = self._library.lib.xenpv_enter(self._end, entry.raw(), given, result)
        if ending == FAILED:
            return Failure.of(self._library.lib.xenpv_end_failure(self._end))
        if ending == ABORTED:
            raised, self.raised = self.raised, None
            if raised is not None:
                raise raised
            driver = self._driver()
            assert driver is not None
            driver.domain._hypervisor.raise_from_hook()
        return int(result[0])

    def here(self) -> Callable[[], Place]:
        """Where in the driver the call or the access under way is."""
        pc = int(self._library.lib.xenpv_end_pc(self._end))
        return lambda: self.place(pc)

    def place(self, pc: int) -> Place:
        return self._library.lines.place(pc - self._library.base)

    def answer(self, call: Call) -> tuple[int, bytes]:
        driver = self._driver()
        assert driver is not None
        return driver.answer(call)


def _access() -> Any:
    """The kernel's function as a pointer."""
    kernel: Any = _kernel
    return kernel.ffi.addressof(kernel.lib, "machine_access")


def _keep(_kind: Any, error: BaseException, traceback: Any) -> None:
    """What a signal's handler raised in `_host_call` where that could not catch it."""
    context = None if traceback is None else traceback.tb_frame.f_locals.get("context")
    if context is not None:
        ffi.from_handle(context).raised = error


@ffi.callback(  # type: ignore[untyped-decorator]  # cffi has no types for it
    "int64_t(void *, const struct xenpv_call *, const void *, void *)",
    error=RESULT_ABORT,
    onerror=_keep,
)
def _host_call(context: Any, call: Any, given: Any, room: Any) -> int:
    runtime: LocalRuntime = ffi.from_handle(context)
    try:
        data = bytes(ffi.buffer(given, call.in_size)) if call.in_size else b""
        asked = Call(call.op, tuple(call.args), data, call.out_size)
        result, answer = runtime.answer(asked)
        ffi.memmove(room, answer, len(answer))
    except BaseException as error:  # noqa: BLE001 - kept, and raised again where the driver was called
        runtime.raised = error
        return RESULT_ABORT
    return result


def _site(frame: FrameType) -> Callable[[], Place]:
    runtime: LocalRuntime = frame.f_locals["self"]
    return runtime.here()


blame.FOREIGN[LocalRuntime.enter.__code__] = _site
