"""C drivers under test: built by gcc with every access instrumented, and run in place of ours.

    from xenpv.testing import load_end, check_blk_backend

    check_blk_backend(load_end("my_blkback.c"))

`xenpv_end.h` (in `INCLUDE`) is what such a driver includes.
"""

from __future__ import annotations

from xenpv.testing.cends.loading import INCLUDE, CEnd, load_end

__all__ = ["INCLUDE", "CEnd", "load_end"]
