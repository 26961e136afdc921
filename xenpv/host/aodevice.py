"""A device on its way in or out, one wait after the other (libxl_device.c, libxl__ao_device).

The waits of several run side by side: each has its own deadline, and none holds up another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from xenpv.host.device import CLOSED, CLOSING, INIT_WAIT, DeviceKey
from xenpv.host.hotplugscript import HotplugScripts, ScriptCall, ScriptProcess
from xenpv.host.libxl import LIBXL, LibxlCtx, ToolstackError
from xenpv.xen.loop import NS_PER_S

DEVICE_TIMEOUT_NS: Final = 10 * NS_PER_S  # LIBXL_INIT_TIMEOUT, LIBXL_DESTROY_TIMEOUT
HOTPLUG_TIMEOUT_NS: Final = 40 * NS_PER_S  # LIBXL_HOTPLUG_TIMEOUT
QEMU_SETTLE_NS: Final = 2 * NS_PER_S  # LIBXL_QEMU_BODGE_TIMEOUT
PAST_INIT_WAIT: Final = ("3", "4")  # on the way to a connection
QEMU_KINDS: Final = ("qdisk", "9pfs", "vfb", "vkb", "pvusb")  # QEMU_BACKEND()
# tapback says InitWait only to a frontend of what its tapdisk has: xapi does not wait for that.
TAP_KINDS: Final = ("vbd3",)


class Mode(enum.Enum):
    """libxl__force: what becomes of a backend that does not close in time."""

    SAFE = "safe"  # an error, and nothing is deleted
    AUTO = "auto"  # repeated once, as FORCED
    FORCED = "forced"  # the frontend goes at once; an error, but all is deleted


class Phase(enum.Enum):
    """What it waits for."""

    BACKEND = "backend"  # a state of the backend
    MODEL = "model"  # QEMU, which has opened its disk or not
    SETTLE = "settle"  # QEMU, for a guest that does not run
    SCRIPT = "script"  # a hotplug script's end
    DIRECTORY = "directory"  # that a driver domain removed it
    OVER = "over"


class AoDevice:
    """`error` is what it ended with. `mode` None: it comes, else it goes."""

    def __init__(
        self,
        ctx: LibxlCtx,
        scripts: HotplugScripts,
        device: DeviceKey,
        calls: list[ScriptCall],
        mode: Mode | None = None,
    ) -> None:
        self.ctx = ctx
        self.scripts = scripts
        self.device = device
        self.mode = mode
        self.phase = Phase.BACKEND
        self.error: ToolstackError | None = None
        self._calls = list(calls)
        self._process: ScriptProcess | None = None
        self._deadline = 0
        self._reached = False  # a watch saw the state, wherever the backend went after it
        self._watch: str | None = None

    @property
    def name(self) -> str:
        return f"{self.device.kind} {self.device.devid}"

    @property
    def is_over(self) -> bool:
        return self.phase is Phase.OVER

    @property
    def _state_path(self) -> str:
        return f"{self.device.backend_path}/state"

    @property
    def _is_foreign(self) -> bool:
        """Its backend is in a driver domain, which runs the scripts and removes the directory."""
        return self.device.backend_domid != self.ctx.control.domid

    @property
    def _removes_itself(self) -> bool:
        """Its backend removes the directory: a driver domain, or tapback without a frontend."""
        return self._is_foreign or self.device.backend_kind in TAP_KINDS

    # the two beginnings

    def connect(self, *, watched: bool) -> None:
        """libxl__wait_device_connection. `watched`: its guest runs, and moves the backend on."""
        kind = self.device.backend_kind
        if self._is_foreign and kind in (*QEMU_KINDS, *TAP_KINDS):
            self._end()
            return
        if kind in QEMU_KINDS:
            self.phase = Phase.MODEL
            return
        if kind in TAP_KINDS:
            self._next_script()
            return
        self._wait(Phase.BACKEND, DEVICE_TIMEOUT_NS)
        if watched:
            self._watch = self.ctx.watches.add(self._state_path, self._state_changed)

    def remove(self, *, runs: bool) -> None:
        """libxl__initiate_device_generic_remove. `runs`: so does the guest."""
        if self.device.backend_kind in QEMU_KINDS and not runs:
            self._wait(Phase.SETTLE, QEMU_SETTLE_NS)
            return
        present = False

        def ask(t: int) -> None:
            nonlocal present
            xs, device = self.ctx.xs, self.device
            state = xs.read(self._state_path, t)
            present = state is not None
            if not present:
                return  # the backend is gone: there is only to clean up
            if self.mode is Mode.FORCED:
                xs.rm_empty_parents(device.frontend_path, f"/local/domain/{device.domid}", t)
            xs.write(f"{device.backend_path}/online", "0", t)
            if state != CLOSED:
                xs.write(self._state_path, CLOSING, t)

        self.ctx.xs.transaction(ask)
        if present:
            self._wait(Phase.BACKEND, DEVICE_TIMEOUT_NS)
        else:
            self._end()

    def _wait(self, phase: Phase, timeout_ns: int) -> None:
        self.phase = phase
        self._deadline = self.ctx.loop.now + timeout_ns

    def _state_changed(self) -> None:
        state = self.ctx.xs.read(self._state_path)
        self._reached = self._reached or state == INIT_WAIT or self._is_past(state)

    def _is_past(self, state: str | None) -> bool:
        """A driver domain runs the script by itself, and may be further than that by this look.

        libxl goes by the state that it reads: it looks sooner, or waits in vain.
        """
        return self._is_foreign and self.mode is None and state in PAST_INIT_WAIT

    # waiting

    def poll(self) -> bool:
        """Go on as far as is possible now; True when it is over."""
        while not self.is_over:
            if not _LOOK[self.phase](self):
                return False
        return True

    @property
    def _late(self) -> bool:
        return self.ctx.loop.now >= self._deadline

    def _look_backend(self) -> bool:
        wanted = INIT_WAIT if self.mode is None else CLOSED
        state = self.ctx.xs.read(self._state_path)
        if state == wanted or self._reached or self._is_past(state):
            self._unwatch()
            self._settled()
        elif state is None and self.mode is not None and self._removes_itself:
            self._end()  # its backend was quicker than this look
        elif state is None:
            why = f"{self.device.backend_path} was removed while state {wanted} was awaited"
            self._end(ToolstackError(why, LIBXL.INVAL))
        elif self._late:
            self._too_late(wanted)
        else:
            return False
        return True

    def _too_late(self, wanted: str) -> None:
        seconds = DEVICE_TIMEOUT_NS // NS_PER_S
        what = f"{self.device.backend_path} to reach state {wanted}"
        error = ToolstackError(f"waited {seconds} s for {what}", LIBXL.TIMEDOUT)
        if self.mode is not Mode.AUTO:
            self._end(error)
            return
        self.ctx.control.trace.note(0, f"{error}: now by force")
        self.mode = Mode.FORCED
        self.remove(runs=True)

    def _look_model(self) -> bool:
        """QEMU says what it could not do in its log alone; here it is the caller's to know."""
        why = self.ctx.xs.read(f"{self.device.backend_path}/error")
        if why is not None:
            self._end(ToolstackError(f"{self.name}: {why}", LIBXL.FAIL))
        else:
            self._next_script()
        return True

    def _look_settle(self) -> bool:
        """QEMU does not look after the devices of a guest that stands: it is closed for it."""
        if not self._late:
            return False
        xs = self.ctx.xs
        state = xs.read(self._state_path)
        if state is not None and state != CLOSED:
            xs.write(self._state_path, CLOSED)
        self._settled()
        return True

    def _settled(self) -> None:
        """device_hotplug: the backend is where it should be."""
        if not self._is_foreign:
            self._next_script()
        elif self.mode is None:
            self._end()  # the scripts are its own domain's to run
        else:
            self._wait(Phase.DIRECTORY, DEVICE_TIMEOUT_NS)

    def _look_directory(self) -> bool:
        path = self.device.backend_path
        if self.ctx.xs.read(path) is None:
            self._end()
        elif self._late:
            seconds = DEVICE_TIMEOUT_NS // NS_PER_S
            why = f"waited {seconds} s for domain {self.device.backend_domid} to remove {path}"
            self._end(ToolstackError(why, LIBXL.TIMEDOUT))
        else:
            return False
        return True

    def _next_script(self) -> None:
        if not self._calls:
            self._end()
            return
        self._process = self.scripts.start(self._calls.pop(0), self.ctx.xs)
        self._wait(Phase.SCRIPT, HOTPLUG_TIMEOUT_NS)

    def _look_script(self) -> bool:
        process = self._process
        assert process is not None
        if process.status is None and not self._late:
            return False
        code = LIBXL.FAIL
        why = ""
        if process.status is None:
            process.kill()
            code = LIBXL.TIMEDOUT
            why = f"waited {HOTPLUG_TIMEOUT_NS // NS_PER_S} s for its hotplug script"
        elif process.status:
            told = self.ctx.xs.read(f"{self.device.backend_path}/hotplug-error")
            why = told or f"its hotplug script ended with status {process.status}"
        if why and self.mode is None:
            self._end(ToolstackError(f"{self.name}: {why}", code))
            return True
        if why:
            self.ctx.control.trace.note(0, f"{self.name}: on removal: {why}")
        self._next_script()
        return True

    def _end(self, error: ToolstackError | None = None) -> None:
        """device_hotplug_done"""
        self._unwatch()
        self.phase = Phase.OVER
        self.error = error
        if self.mode is not None and (error is None or self.mode is Mode.FORCED):
            self.device.destroy(self.ctx.xs)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self.ctx.watches.remove(self._watch)
            self._watch = None


_LOOK: Final[Mapping[Phase, Callable[[AoDevice], bool]]] = {
    Phase.BACKEND: AoDevice._look_backend,
    Phase.MODEL: AoDevice._look_model,
    Phase.SETTLE: AoDevice._look_settle,
    Phase.SCRIPT: AoDevice._look_script,
    Phase.DIRECTORY: AoDevice._look_directory,
}
