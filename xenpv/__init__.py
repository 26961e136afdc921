"""A Xen platform that you import: hypervisor, xenstore, Windows PV drivers, backends, toolstack.

Names are looked up when they are first used: `import xenpv` imports the errors alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.host.image import MemoryImage, RawImage
    from xenpv.host.libxl import ToolstackError
    from xenpv.host.network import Bridge, Frame
    from xenpv.platform import Disk, Platform, Vif

    __version__: str

# name: the module that has it, below this one
_HOME: Final = {
    "Bridge": "host.network",
    "Disk": "platform",
    "Frame": "host.network",
    "Guest": "guest",
    "MemoryImage": "host.image",
    "Platform": "platform",
    "RawImage": "host.image",
    "ToolstackError": "host.libxl",
    "Vif": "platform",
}

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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """Of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xenpv")
    except PackageNotFoundError:  # a checkout on the path
        return "0+unknown"
