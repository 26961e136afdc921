"""Hypothesis strategies: bytes to lay over slots, indices and values, and what drivers say.

Raw ones are one `binary()` or a few integers, which is fast; structured ones are messages that
tell in words what shrinking left of them. Nothing in here runs anything.
"""

from __future__ import annotations

from _xenpv_hypothesis import register
from xenpv.testing.strategies.blk import BlkRequest, blk_features, blk_requests
from xenpv.testing.strategies.lifecycle import lifecycle_steps
from xenpv.testing.strategies.net import Extra, NetPacket, extras, net_features, net_packets
from xenpv.testing.strategies.raw import indices, overlays, slots, store_values
from xenpv.testing.strategies.schedules import schedules
from xenpv.testing.strategies.scsi import ScsiCommand, srbs
from xenpv.testing.strategies.store import StoreOperation, store_operations

__all__ = [
    "BlkRequest",
    "Extra",
    "NetPacket",
    "ScsiCommand",
    "StoreOperation",
    "blk_features",
    "blk_requests",
    "extras",
    "indices",
    "lifecycle_steps",
    "net_features",
    "net_packets",
    "overlays",
    "schedules",
    "slots",
    "srbs",
    "store_operations",
    "store_values",
]

register()
