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
from xenpv.guest import Guest
from xenpv.host.image import MemoryImage, RawImage
from xenpv.host.libxl import ToolstackError
from xenpv.host.network import Bridge, Frame
from xenpv.platform import Disk, Platform, Vif

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
