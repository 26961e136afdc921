"""What tells the backends' ways of serving a tx ring apart."""

from __future__ import annotations

from enum import Enum
from typing import Final

import attrs


class Server(Enum):
    """Whose reading of the ring: each is a class of its own (nettx, txqemu, txmirage)."""

    LINUX = "linux"
    QEMU = "qemu"
    MIRAGE = "mirage"


@attrs.frozen(kw_only=True)
class TxRules:
    """A backend's behaviour towards what a guest transmits.

    `zerocopy`: of a packet only the headers are copied, the rest is mapped until whoever has
    the frame lets go of it, and its slots are answered then (SKBTX_DEV_ZEROCOPY, as every
    Linux does). Without it all is copied and answered at once, which is cheaper here.
    `shuffled`: slots that become due together are answered in an order that the loop's
    chooser draws; every order is legal.
    `rated`: obeys the `rate` key.
    """

    server: Server = Server.LINUX
    zerocopy: bool = False
    shuffled: bool = False
    rated: bool = True


LINUX_TX: Final = TxRules()
LINUX_ZEROCOPY_TX: Final = TxRules(zerocopy=True)
QEMU_TX: Final = TxRules(server=Server.QEMU, rated=False)
MIRAGE_TX: Final = TxRules(server=Server.MIRAGE, rated=False)
