"""The smallest drivers that connect, which the tests of this package spoil."""

from __future__ import annotations

import sys
from pathlib import Path

from xenpv.abi.xenbus import XenbusState

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))


class Backend:
    """A block backend that maps its ring, binds its port, and answers nothing."""

    def __init__(self, end, image):
        self.end = end
        self.image = image
        self.page = self.port = 0
        self.events = 0

    def probe(self):
        self.end.switch_state(XenbusState.INIT_WAIT)

    def frontend_changed(self, state):
        if state is XenbusState.INITIALISED:
            self.page = self.end.map(self.end.peer_number("ring-ref"))
            self.ring = self.end.back_ring([self.page], 112, 16)
            self.port = self.end.bind_port(self.end.peer_number("event-channel"), self.event)
            self.end.switch_state(XenbusState.CONNECTED)
        elif state in (XenbusState.CLOSED, XenbusState.UNKNOWN):
            self.close()
            self.end.switch_state(XenbusState.CLOSED)

    def event(self):
        self.events += 1

    def close(self):
        if self.port:
            self.end.close_port(self.port)
            self.end.unmap(self.page)
        self.port = 0


class Frontend:
    """A block frontend that connects, and keeps what it is asked for."""

    def __init__(self, end):
        self.end = end
        self.asked = []
        self.port = 0

    def probe(self):
        pass

    def backend_changed(self, state):
        if state is XenbusState.INIT_WAIT:
            self.page = self.end.page()
            self.ring = self.end.front_ring([self.page], 112, 16)
            self.ref = self.end.grant(self.page)
            self.port = self.end.open_port(self.event)
            self.end.write_keys({"ring-ref": str(self.ref), "event-channel": str(self.port)})
            self.end.switch_state(XenbusState.INITIALISED)
        elif state is XenbusState.CONNECTED:
            self.end.switch_state(XenbusState.CONNECTED)
        elif state is XenbusState.CLOSING:
            self.end.switch_state(XenbusState.CLOSED)

    def event(self):
        pass

    def submit(self, transfer):
        self.asked.append(transfer)

    def close(self):
        if self.port:
            self.end.close_port(self.port)
            self.end.revoke(self.ref)
            self.end.free(self.page)
        self.port = 0
