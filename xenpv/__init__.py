"""A Xen platform that you import: hypervisor, xenstore, Windows PV drivers, backends, toolstack."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    __version__: str

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


def __getattr__(name: str) -> str:
    """`__version__` is that of the installed distribution, looked up when asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xenpv")
    except PackageNotFoundError:  # a checkout on the path
        return "0+unknown"
