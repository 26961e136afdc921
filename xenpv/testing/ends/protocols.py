"""What a driver under test offers: four protocols, and the factories that make such drivers.

Every method is called by the loop and returns. PeerProtocolError, GrantError, HypercallError
and StoreError that come out of what is called about a state break the device, as
xenbus_dev_fatal does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from xenpv.abi.xenbus import XenbusState

if TYPE_CHECKING:
    from xenpv.host.image import Image
    from xenpv.host.network import Frame
    from xenpv.testing.ends.end import End
    from xenpv.testing.ends.port import EndPort
    from xenpv.testing.ends.transfer import Transfer


class Backend(Protocol):
    """A backend of one device."""

    def probe(self) -> None:
        """The device's directory is there: write features, go to InitWait."""

    def frontend_changed(self, state: XenbusState) -> None:
        """The frontend wrote a state; UNKNOWN: its directory went, or that is no state."""

    def close(self) -> None:
        """The device is gone, in whatever state: give everything back."""


class Frontend(Protocol):
    """A frontend of one device."""

    def probe(self) -> None:
        """The device is there."""

    def backend_changed(self, state: XenbusState) -> None:
        """The backend wrote a state; UNKNOWN: its directory went, or that is no state."""

    def close(self) -> None:
        """The device is gone, and the backend holds nothing of it: give everything back."""


class BlkBackend(Backend, Protocol):
    """`factory(end, image)` makes one; the image raises ImageError where the host fails."""


class NetBackend(Backend, Protocol):
    """`factory(end, port)` makes one; `port.transmit` gives the bridge what the guest sent."""

    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames of the bridge for the guest. It may transmit."""


class BlkFrontend(Frontend, Protocol):
    """`factory(end)` makes one."""

    def submit(self, transfer: Transfer) -> None:
        """A program's request. `transfer.complete` or `transfer.fail` answers it, once, now or
        later, whatever becomes of the device.
        """


class NetFrontend(Frontend, Protocol):
    """`factory(end, receive)` makes one; `receive(frame)` hands a frame up to the programs."""

    def send(self, frame: bytes) -> None:
        """A program's frame. One that cannot be sent now waits, or is dropped."""


class BlkBackendFactory(Protocol):
    def __call__(self, end: End, image: Image, /) -> BlkBackend: ...


class NetBackendFactory(Protocol):
    def __call__(self, end: End, port: EndPort, /) -> NetBackend: ...


class BlkFrontendFactory(Protocol):
    def __call__(self, end: End, /) -> BlkFrontend: ...


class NetFrontendFactory(Protocol):
    def __call__(self, end: End, receive: Callable[[bytes], object], /) -> NetFrontend: ...
