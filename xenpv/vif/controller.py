"""XenVif's end of the control ring: a request at a time, and its answer (win-xenvif controller.c).

The driver waits for an answer in a loop, with its lock held: 100 ms at a time, up to 5 s. Here
the wait is the state WAITING, which the answer ends, or the timer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol
from zlib import crc32

from xenpv.abi.layout import packer
from xenpv.abi.netif import XEN_NETIF_CTRL_STATUS as STATUS
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.poller import Poller
from xenpv.xen.loop import NS_PER_MS

if TYPE_CHECKING:
    from xenpv.xen.loop import Timer

REQUEST: Final = packer("xen_netif_ctrl_request")
RESPONSE: Final = packer("xen_netif_ctrl_response")
WORDS: Final = 3  # of a request's data
U16: Final = 0xFFFF

POLL_NS: Final = 100 * NS_PER_MS  # XENVIF_CONTROLLER_POLL_PERIOD
POLLS_MAX: Final = 50  # 5 s

STATUSES: Final[Mapping[int, NTSTATUS]] = {
    STATUS.SUCCESS: NTSTATUS.SUCCESS,
    STATUS.NOT_SUPPORTED: NTSTATUS.NOT_SUPPORTED,
    STATUS.INVALID_PARAMETER: NTSTATUS.INVALID_PARAMETER,
    STATUS.BUFFER_OVERFLOW: NTSTATUS.BUFFER_OVERFLOW,
}


class ControllerState(enum.Enum):
    """Whether a request may be put, and whether one is under way."""

    DISABLED = "disabled"
    IDLE = "idle"
    WAITING = "waiting"


class Asker(Protocol):
    """Who puts requests."""

    def answered(self, status: NTSTATUS, data: int) -> None:
        """The answer to the last request; another may be put at once.

        TRANSACTION_TIMED_OUT: there was none in 5 s; one that still comes is ignored.
        """


class Controller:
    """The control ring towards domain `domid`, from connect to release.

    `broken` gets the reason when the backend broke the protocol. HypercallError: page,
    reference or port ran out; `release` takes back the rest.
    """

    def __init__(
        self, bus: XenBus, domid: int, name: str, asker: Asker, broken: Callable[[str], None]
    ) -> None:
        self._bus = bus
        self._domid = domid
        self.name = name
        self._asker = asker
        self._broken = broken
        self.state = ControllerState.DISABLED
        self._polls = 0
        self._timer: Timer | None = None  # made with the first request
        self._lent: Granter | None = None  # a page for keys and mappings, made when one is sent
        self._poller: Poller | None = None
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain,
            self._page.pfns,
            req_size=REQUEST.size,
            rsp_size=RESPONSE.size,
            kind="xen_netif_ctrl",
        )
        # Any number to begin with, as the driver's is; the same one for a seed.
        self._id = crc32(f"{bus.domain.loop.seed} {bus.domain.domid} {name}".encode()) & U16

    def connect(self) -> None:
        """The channel. HypercallError: no port is left."""
        self._poller = Poller(self._bus, self._domid, self.name, self._poll)

    def keys(self) -> list[tuple[str, str]]:
        """Keys of the frontend's directory."""
        assert self._poller is not None
        ref, port = self._page.refs[0], self._poller.port
        return [("ctrl-ring-ref", str(ref)), ("event-channel-ctrl", str(port))]

    def enable(self) -> None:
        """Both ends are Connected."""
        assert self._poller is not None
        self.state = ControllerState.IDLE
        self._poller.unmask()

    def disable(self) -> None:
        """No request any more; an answer that is waited for does not come."""
        self.state = ControllerState.DISABLED
        if self._timer is not None:
            self._timer.cancel()

    def put(self, kind: int, *data: int) -> None:
        """Send a request; `answered` comes later, never from in here.

        NOT_SUPPORTED: it is not enabled; INSUFFICIENT_RESOURCES: the ring is full of requests
        that the backend never answered.
        """
        if self.state is ControllerState.DISABLED:
            raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"{self.name} is disabled")
        assert self.state is ControllerState.IDLE, "one request at a time"
        if not self.ring.free:
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, f"{self.name} is full")
        self._id = (self._id + 1) & U16 or 1
        request = REQUEST.pack(self._id, kind, *(*data, 0, 0, 0)[:WORDS])
        assert self._poller is not None
        self.state = ControllerState.WAITING
        if self.ring.push(request, 1):
            self._poller.send()
        self._polls = 0
        if self._timer is None:
            domain = self._bus.domain
            self._timer = domain.timer(domain.task(f"{self.name} timer", self._elapsed))
        self._timer.arm(POLL_NS)

    def lend(self, data: bytes) -> int:
        """A reference to a page that begins with `data`, until the answer of the next request.

        INSUFFICIENT_RESOURCES: no page or no reference is left.
        """
        assert len(data) <= PAGE_SIZE
        try:
            lent = self._lent
            if lent is None:
                lent = Granter(self._bus.gnttab, self._domid, readonly=False)
                lent.add(1)
                self._lent = lent
            self._bus.domain.write(lent.pfns[0], 0, data)
            lent.permit((0,))
        except HypercallError as error:
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, str(error)) from error
        return lent.refs[0]

    def take_back(self) -> list[tuple[int, int]]:
        """End what `lend` gave; (ref, pfn) of what the backend holds on to."""
        lent = self._lent
        if lent is None or not lent.revoke((0,)):
            return []
        self._lent = None
        lent.release()
        return lent.quarantined

    def _poll(self) -> None:
        more = self.state is not ControllerState.DISABLED
        while more:
            try:
                _, raw, more = self.ring.reap()
            except PeerProtocolError as error:
                self.disable()
                self._broken(f"{self.name}: {error}")
                return
            for number, _, status, data in RESPONSE.iter_unpack(bytes(raw)):
                if number == self._id and self.state is ControllerState.WAITING:
                    self._answer(STATUSES.get(status, NTSTATUS.UNSUCCESSFUL), data)

    def _elapsed(self) -> None:
        """100 ms without an answer: look, and tell the backend once more."""
        self._poll()
        if self.state is not ControllerState.WAITING:
            return
        self._polls += 1
        if self._polls == POLLS_MAX:
            self._answer(NTSTATUS.TRANSACTION_TIMED_OUT, 0)
        else:
            assert self._poller is not None
            assert self._timer is not None
            self._poller.send()
            self._timer.arm(POLL_NS)

    def _answer(self, status: NTSTATUS, data: int) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self.state = ControllerState.IDLE
        self._asker.answered(status, data)

    def suspend(self) -> None:
        """The channel is void; pages and references stay until `release`."""
        self.disable()
        if self._poller is not None:
            self._poller.close()
            self._poller = None

    def release(self) -> list[tuple[int, int]]:
        """Give everything back; (ref, pfn) of what the backend still maps."""
        self.suspend()
        if self._timer is not None:
            self._bus.domain.forget_timer(self._timer)
            self._timer = None
        held: list[tuple[int, int]] = []
        for granter in (self._page, self._lent):
            if granter is not None:
                granter.release()
                held += granter.quarantined
        self._lent = None
        return held
