"""A Xen platform that you import: hypervisor, xenstore, Windows PV drivers, backends, toolstack."""

from __future__ import annotations

from xenpv.errors import (
    ConfigError,
    GrantError,
    HypercallError,
    Livelock,
    LocalProtocolError,
    PeerProtocolError,
    StoreError,
    XenpvError,
)
from xenpv.host.image import MemoryImage, RawImage
from xenpv.host.network import Bridge, Frame
from xenpv.host.toolstack import ToolstackError
from xenpv.platform import Disk, Guest, Platform, Vif

__all__ = [
    "Bridge",
    "ConfigError",
    "Disk",
    "Frame",
    "GrantError",
    "Guest",
    "HypercallError",
    "Livelock",
    "LocalProtocolError",
    "MemoryImage",
    "PeerProtocolError",
    "Platform",
    "RawImage",
    "StoreError",
    "ToolstackError",
    "Vif",
    "XenpvError",
]
