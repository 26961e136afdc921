"""The memory that all frames of a machine live in: a sparse memfd, pooled in the process.

Page faults are a third of the price of a platform, so a closed platform's arena is
scrubbed (only frames that were handed out) and used again. An arena of which somebody
still holds a view is dropped instead.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any

from xenpv.abi._kernel import ffi, lib

PAGE_SIZE = 4096
IDLE_MAX = 4

_idle: list[Arena] = []
_live: list[weakref.ref[Arena]] = []


class Arena:
    """`nr_frames` frames of shared memory and the kernel's machine over them.

    `views` is the buffer that every memoryview of a frame is made from; as long as one of
    those lives, so does this object, which is how `give_back` knows. `descriptor` is the
    memfd's, by which a frame can be mapped a second time.
    """

    __slots__ = ("__weakref__", "_map", "_memory", "descriptor", "machine", "nr_frames", "views")

    def __init__(self, nr_frames: int) -> None:
        size = nr_frames * PAGE_SIZE
        self.descriptor = os.memfd_create("xenpv")
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)
        self._memory = ffi.from_buffer("uint8_t[]", self._map)
        self.nr_frames = nr_frames
        self.machine: Any = lib.machine_new(self._memory, nr_frames)
        if self.machine == ffi.NULL:
            raise MemoryError(f"no memory for the tables of {nr_frames} frames")
        self.machine = ffi.gc(self.machine, lib.machine_delete)
        self.views = ffi.buffer(self._memory)
        _live.append(weakref.ref(self, _live.remove))

    def give_back(self) -> bool:
        """Scrub and pool; False if a view is still out and the arena must not be reused."""
        out = weakref.ref(self.views)
        del self.views
        viewed = out() is not None
        lib.machine_reset(self.machine)
        if viewed:
            return False
        self.views = ffi.buffer(self._memory)
        if len(_idle) < IDLE_MAX:
            _idle.append(self)
        return True


def take(nr_frames: int) -> Arena:
    """An arena whose frames all read zero."""
    for index, arena in enumerate(_idle):
        if arena.nr_frames == nr_frames:
            return _idle.pop(index)
    return Arena(nr_frames)


def _after_fork_in_child() -> None:
    # The mapping is shared: a write of the child would land in its parent's platform.
    _idle.clear()
    for reference in _live:
        arena = reference()
        if arena is not None:
            lib.machine_forked(arena.machine)


os.register_at_fork(after_in_child=_after_fork_in_child)
