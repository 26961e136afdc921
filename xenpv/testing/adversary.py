"""What a hostile peer may change just before its victim loads it, and to what.

Only bytes that another domain than the victim can write: pages it shares by grant or owns,
and its grant table. Values are few and telling ones: zero, one, all bits, the sign boundary,
and the neighbours of what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpv.abi._kernel import lib
from xenpv.view.rings import FIRST_SLOT, KnownRing, fields, peek, poke, rings
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.xen.hypervisor import Hypervisor

WORD_SIZES: Final = (1, 2, 4, 8)
# Scalars of an entry that are worth a change; an entry has more segments than one.
FIELDS_MAX: Final = 8
DOMID_XEN: Final[int] = lib.DOMID_XEN


def values(old: int, size: int) -> tuple[int, ...]:
    """What a word of `size` bytes may become: without what it is, each once."""
    top = (1 << 8 * size) - 1
    wanted = (0, 1, old + 1 & top, old - 1 & top, top, top >> 1, (top >> 1) + 1)
    return tuple(dict.fromkeys(value for value in wanted if value != old))


NR_VALUES: Final = 7  # as many as `values` gives at most, so that each can be reached


class Load(NamedTuple):
    """A load that is about to happen: frame, offset and size in bytes."""

    frame: int
    offset: int
    size: int


class Adversary:
    """Changes what domains in `victims` load, on one machine."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self.victims: list[int] = []
        self._rings: list[KnownRing] = []
        self._grant_frames: dict[int, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again at where rings and grant tables are."""
        self._rings = rings(self.hypervisor)
        self._grant_frames = {
            int(lib.grant_table_frame(domain.kernel, index)): domain.domid
            for domain in self.hypervisor.domains.values()
            for index in range(domain.gnttab.nr_frames)
        }

    def is_grant_table(self, frame: int) -> bool:
        return frame in self._grant_frames

    def count(self, actor: int, load: Load) -> int:
        """How many changes there are before this load; 0 where no peer can write."""
        if actor not in self.victims or not self._writable_by_peer(actor, load.frame):
            return 0
        return len(self._words(load)) * NR_VALUES

    def _writable_by_peer(self, actor: int, frame: int) -> bool:
        owner = lib.frame_owner(self.hypervisor.machine, frame)
        if owner == DOMID_XEN:
            return self._grant_frames.get(frame, actor) != actor
        domain = self.hypervisor.domains.get(owner)
        if domain is not None and lib.fifo_has_frame(domain.kernel, frame):
            return False  # the other reference is Xen's own
        # The owner's reference is one; a peer's mapping is another.
        return bool(owner != actor or lib.frame_refs(self.hypervisor.machine, frame) > 1)

    def _words(self, load: Load) -> list[tuple[int, int]]:
        """(offset in the frame, size) of the words that a change may be of."""
        if load.size in WORD_SIZES:
            return [(load.offset, load.size)]
        for ring in self._rings:
            if load.frame in ring.frames and load.size == ring.entry_size:
                at = ring.frames.index(load.frame) * PAGE_SIZE + load.offset
                if not (at - FIRST_SLOT) % ring.entry_size:
                    words = fields(ring.kind.request)[:FIELDS_MAX]
                    return [(load.offset + start, size) for _, start, size in words]
        return [(load.offset, 4 if load.size >= 4 else 1)]

    def change(self, load: Load, argument: int) -> str:
        """Make the argument-th change; what it was, in words."""
        words = self._words(load)
        index, which = divmod(argument % (len(words) * NR_VALUES), NR_VALUES)
        offset, size = words[index]
        old = int.from_bytes(peek(self.hypervisor, load.frame, offset, size), "little")
        wanted = values(old, size)
        new = wanted[which % len(wanted)]
        poke(self.hypervisor, load.frame, offset, new.to_bytes(size, "little"))
        return f"{self.name(load.frame, offset)} {old:#x} becomes {new:#x}"

    def name(self, frame: int, offset: int) -> str:
        """A byte in words: a ring's field, or whose page it is."""
        for ring in rings(self.hypervisor):
            where = ring.where(frame, offset)
            if where is not None:
                return f"{where} (frame {frame}, +{offset:#x})"
        if frame in self._grant_frames:
            ref, within = divmod(offset, 8)
            return f"grant entry {ref} of d{self._grant_frames[frame]}+{within}"
        owner = int(lib.frame_owner(self.hypervisor.machine, frame))
        whose = "Xen's page" if owner == DOMID_XEN else f"a page of d{owner}"
        return f"{whose} (frame {frame}, +{offset:#x})"
