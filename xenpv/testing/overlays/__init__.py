"""Targets of overlays: for each end a language of bytes, and what must hold after every run."""

from __future__ import annotations

from typing import Final

# name: the module that has it, as TARGET
HOMES: Final = {
    "blk-backend": "blkback",
    "net-backend": "netback",
    "blk-frontend": "blkfront",
    "net-frontend": "netfront",
    "store": "store",
    "xenbus": "xenbus",
}
