"""What overlays over frontends have in common: the hostile backend's words, keys, states, end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import StoreError
from xenpv.testing.back_world import BackWorld
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlays.language import STATES, STEPS, TEXTS, Language, Operation, pick
from xenpv.testing.raw_back import RawBack
from xenpv.testing.sring import RawBackSring
from xenpv.view.rings import peek
from xenpv.xen.domain import PAGE_SIZE

PERSONALITIES: Final = ("windows", "linux")
WORDS: Final = ("rsp_prod", "rsp_event", "req_prod", "req_event")
GTF_type_mask: Final[int] = lib.GTF_type_mask


class FrontOverlay:
    """One example over a frontend. `honest`: its backend has done nothing wrong yet; `held` are
    pages that the backend keeps mapped. `kept`: it may have had pages mapped when the frontend
    was done with them, which a guest does not grant anew before it sees them free.
    """

    kind = ""
    keys: tuple[str, ...] = ()

    def __init__(self, world: BackWorld) -> None:
        self.world = world
        self.platform = world.platform
        self.honest = True
        self.held: list[int] = []
        self.kept = False
        # Of the store's ring and the console, which outlive every device.
        kernel = world.guest.created.domain.kernel
        self.pinned: int = lib.grant_pinned_refs(kernel) - self.back.mapped

    @property
    def back(self) -> RawBack:
        """The backend."""
        raise NotImplementedError

    def rings(self) -> tuple[RawBackSring, ...]:
        """Those that the backend has mapped."""
        raise NotImplementedError

    def end(self) -> None:
        """What must hold at the end of an example."""
        raise NotImplementedError

    # operations

    def run(self, _args: bytes) -> None:
        """Let everything happen that is due."""
        self.world.run()

    def notify(self, _args: bytes) -> None:
        """An event that nobody asked for."""
        self.back.notify()

    def index(self, args: bytes) -> None:
        """A word of a header: away from where it is, or a ring away."""
        word, step, which = args
        rings = self.rings()
        if rings:
            self.honest = False
            ring, name = pick(rings, which >> 1), pick(WORDS, word)
            far = ring.size + pick((0, 1, -1), step) if which & 1 else pick(STEPS, step)
            setattr(ring, name, getattr(ring, name) + far)

    def slot(self, args: bytes) -> None:
        """Bytes over a slot near the producer of responses."""
        back, offset, *data = args
        rings = self.rings()
        if rings:
            self.honest = False
            ring = pick(rings, back >> 4)
            at = ring.rsp_prod - back % 8 & 0xFFFFFFFF
            ring.write_slot(at, bytes(data), offset % (ring.entry_size - len(data) + 1))

    def key(self, args: bytes) -> None:
        """A key of the backend's directory, any text."""
        self.honest = False
        with suppress(StoreError):
            self.back.write_key(pick(self.keys, args[0]), pick(TEXTS, args[1]).replace("\0", ""))

    def state(self, args: bytes) -> None:
        """The backend's state, any text."""
        self.honest = False
        self.kept |= self.back.connected
        with suppress(StoreError):
            self.back.write_key("state", pick(STATES, args[0]))

    def detach(self, _args: bytes) -> None:
        """Ports closed and rings unmapped, without a word."""
        self.honest = False
        self.held.clear()
        self.back.detach()

    def advance(self, args: bytes) -> None:
        """Time passes: watchdogs and timeouts."""
        self.world.run()
        self.platform.advance(args[0] / 4)

    # the end

    def close(self) -> None:
        """The backend closes as an honest one does, whatever came before."""
        self.held.clear()
        self.back.detach()
        for state in (State.CLOSING, State.CLOSED):
            with suppress(StoreError):
                self.back.write_key("state", str(int(state)))
                self.back.write_key("online", "0")
            self.world.run()

    def returned(self) -> None:
        """Nothing of the guest's is granted, mapped or bound for a device that is closed."""
        domain = self.world.guest.created.domain
        found = []
        pinned, granted = lib.grant_pinned_refs(domain.kernel), self._granted()
        if pinned > self.pinned:
            found.append(f"{pinned - self.pinned} pages are still mapped")
        if granted > self.pinned and not self.kept:
            found.append(f"{granted - self.pinned} entries still grant something")
        if found:
            raise CheckFailed(found)
        self.world.guest.destroy()
        self.world.run()
        check_all(self.platform)

    def _granted(self) -> int:
        """Entries of the guest's table that grant something."""
        domain = self.world.guest.created.domain
        step = 4 if domain.gnttab.version == 1 else 8
        count = 0
        for at in range(domain.gnttab.nr_frames):
            frame = int(lib.grant_table_frame(domain.kernel, at))
            page = memoryview(peek(self.platform.hypervisor, frame, 0, PAGE_SIZE)).cast("H")
            count += sum(1 for flags in page[::step].tolist() if flags & GTF_type_mask)
        return count

    @staticmethod
    def play(make: Callable[[str], FrontOverlay], language: Language, data: bytes) -> None:
        """One example: the first byte of `guest`, if there is one, picks the personality."""
        steps = list(language.read(data))
        which = next((args[0] for one, args in steps if one.name == "guest"), 0)
        overlay = make(pick(PERSONALITIES, which))
        try:
            for operation, args in steps:
                operation.act(overlay, args)
            overlay.end()
        finally:
            overlay.world.close()


def _guest(_overlay: FrontOverlay, _args: bytes) -> None:
    """It was read before the world was made."""


def operations() -> tuple[Operation, ...]:
    """Those that every hostile backend has."""
    return (
        Operation("run", (), FrontOverlay.run, 5),
        Operation("notify", (), FrontOverlay.notify),
        Operation("index", ("word", "step", "which"), FrontOverlay.index),
        Operation("slot", ("back", "offset", "b0", "b1", "b2", "b3"), FrontOverlay.slot),
        Operation("key", ("name", "text"), FrontOverlay.key),
        Operation("state", ("text",), FrontOverlay.state),
        Operation("detach", (), FrontOverlay.detach),
        Operation("advance", ("time",), FrontOverlay.advance),
        Operation("guest", ("personality",), _guest),
    )
