"""An event channel of a queue, and the DPC that polls the rings behind it (win-xenvif poller.c).

The channel is masked from the event until the poll found nothing more. Polling repeats until
the unmask reports nothing pending; after POLLS_MAX rounds the event is forced through the
hypervisor instead, so a peer that never stops cannot keep this guest busy for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError

POLLS_MAX: Final = 256


class Poller:
    """`poll` runs as a task of the guest, after an event or a `trigger`."""

    def __init__(self, bus: XenBus, domid: int, name: str, poll: Callable[[], object]) -> None:
        self._evtchn = bus.evtchn
        self._domain = bus.domain
        self._poll = poll
        self._task = bus.domain.task(f"{name} dpc", self._run)
        try:
            self.channel = bus.evtchn.open_unbound(domid, self._task.wake, mask=True)
        except HypercallError:
            self._domain.forget(self._task)
            raise

    @property
    def port(self) -> int:
        return self.channel.port

    def unmask(self) -> None:
        """Begin to listen; events that came before are delivered."""
        self._evtchn.unmask(self.channel, force=True)

    def trigger(self) -> None:
        """Poll soon, without an event."""
        self._task.wake()

    def send(self) -> None:
        """Notify the backend."""
        self._evtchn.send(self.channel)

    def _run(self) -> None:
        for _ in range(POLLS_MAX - 1):
            self._poll()
            if not self._evtchn.unmask(self.channel):
                return
        self._poll()
        # Unlike the others this one leaves an event that came meanwhile to the hypervisor.
        self._evtchn.unmask(self.channel, force=True)

    def close(self) -> None:
        self._evtchn.close(self.channel)
        self._domain.forget(self._task)
