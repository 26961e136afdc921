"""A user's driver in place of ours: what it gets, what it offers, and worlds around it.

class MyBackend:                                    # see protocols.BlkBackend
    def __init__(self, end: End, image: Image) -> None: ...

check_blk_backend(MyBackend)                        # every numbered case
with user_blk_backend(MyBackend, seed=7) as world:  # or a test of one's own
    ...
"""

from __future__ import annotations

from xenpv.testing.ends.app import DiskApp, NetApp, TransferError
from xenpv.testing.ends.backend import BackendWorld, user_blk_backend, user_net_backend
from xenpv.testing.ends.blame import UserEndError
from xenpv.testing.ends.end import End, EndTimer
from xenpv.testing.ends.frontend import (
    FrontendWorld,
    OwnFrontendWorld,
    UserBlkWorld,
    UserNetWorld,
    user_blk_frontend,
    user_net_frontend,
)
from xenpv.testing.ends.handshake import ConnectingBackend, ConnectingFrontend
from xenpv.testing.ends.plug import PluggedBackends, plug_backend
from xenpv.testing.ends.port import EndPort
from xenpv.testing.ends.protocols import (
    BlkBackend,
    BlkBackendFactory,
    BlkFrontend,
    BlkFrontendFactory,
    NetBackend,
    NetBackendFactory,
    NetFrontend,
    NetFrontendFactory,
)
from xenpv.testing.ends.store import EndStore
from xenpv.testing.ends.transfer import Operation, Transfer

__all__ = [
    "BackendWorld",
    "BlkBackend",
    "BlkBackendFactory",
    "BlkFrontend",
    "BlkFrontendFactory",
    "ConnectingBackend",
    "ConnectingFrontend",
    "DiskApp",
    "End",
    "EndPort",
    "EndStore",
    "EndTimer",
    "FrontendWorld",
    "NetApp",
    "NetBackend",
    "NetBackendFactory",
    "NetFrontend",
    "NetFrontendFactory",
    "Operation",
    "OwnFrontendWorld",
    "PluggedBackends",
    "Transfer",
    "TransferError",
    "UserBlkWorld",
    "UserEndError",
    "UserNetWorld",
    "plug_backend",
    "user_blk_backend",
    "user_blk_frontend",
    "user_net_backend",
    "user_net_frontend",
]
