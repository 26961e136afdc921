"""Ends that fail the cases of any ring, a mistake each."""

from __future__ import annotations

from examples.own_protocol import ECHO, ERROR, EchoBackend, EchoFrontend
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import GrantError, HypercallError, PeerProtocolError

HEADER = 64
SLOT = 16
U32 = 1 << 32


class OwnLoop(EchoBackend):
    """A ring in Python, which answers with ERROR. `behind` says whether there is more."""

    def connect(self):
        super().connect()
        self.cons = self.end.load32(self.pfns[0], 8)

    def behind(self, prod):
        return self.cons != prod

    def event(self):
        page, end = self.pfns[0], self.end
        while self.behind(end.load32(page, 0)):
            at = HEADER + self.cons % 128 * SLOT
            rid = int.from_bytes(end.read(page, at, 2), "little")
            end.write(page, at, ECHO.response(id=rid, status=ERROR).ljust(SLOT, b"\0"))
            self.cons = (self.cons + 1) % U32
            end.store32(page, 8, self.cons)
        end.store32(page, 4, (self.cons + 1) % U32)
        end.notify(self.port)


class Rewinds(EchoBackend):
    """It answers once more what is published again."""

    def event(self):
        page, end = self.pfns[0], self.end
        if end.load32(page, 0) < self.ring.ring.req_cons:
            end.store32(page, 8, self.ring.ring.req_cons + 1)
        else:
            super().event()


class NoWrap(OwnLoop):
    """It compares indices as numbers."""

    def behind(self, prod):
        return self.cons < prod


class Limited(OwnLoop):
    """It serves 16 requests at most, and forgets the others."""

    def event(self):
        page, end = self.pfns[0], self.end
        for at in range(16):
            if self.cons + at == end.load32(page, 0):
                break
            end.write(page, HEADER + at * SLOT, bytes(SLOT))
            end.store32(page, 8, self.cons + at + 1)


class AnswersAll(EchoBackend):
    """It answers something at every event."""

    def event(self):
        super().event()
        page, end = self.pfns[0], self.end
        end.store32(page, 8, end.load32(page, 8) + 1)


class Believes(EchoBackend):
    """It connects whatever the keys say."""

    def connect(self):
        try:
            super().connect()
        except (GrantError, HypercallError, PeerProtocolError):
            self.end.write_key("note", "no ring")


class OnlyKnown(EchoBackend):
    """It knows three states of a frontend."""

    def frontend_changed(self, state):
        {
            XenbusState.INITIALISING: lambda: None,
            XenbusState.INITIALISED: lambda: super(OnlyKnown, self).frontend_changed(state),
            XenbusState.CONNECTED: lambda: None,
        }[state]()


class NoAnew(EchoBackend):
    """It closes for ever."""

    def frontend_changed(self, state):
        if state is not XenbusState.INITIALISING or self.end.state is not XenbusState.CLOSED:
            super().frontend_changed(state)


class Waits(EchoBackend):
    """It looks at its ring only when req_event is what it wrote."""

    def event(self):
        page, end = self.pfns[0], self.end
        if end.load32(page, 4) in (1, self.ring.ring.req_cons + 1):
            super().event()


class Silently(EchoBackend):
    """It counts on a frontend that hears of it."""

    def answer(self, response):
        self.ring.push(response)
        channels = self.end._domain.evtchn.ports
        assert channels[self.port].remote is not None


class Asserts(EchoBackend):
    """It is sure that lengths are right."""

    def write_back(self, request):
        assert request.length <= 4096
        return super().write_back(request)


# frontends


class NoCheck(EchoFrontend):
    """It takes responses without asking whether there can be so many."""

    def event(self):
        page = self.shared[0][0]
        prod = self.end.load32(page, 8)
        seen = getattr(self, "seen", 0)
        while seen != prod:
            at = HEADER + seen % 128 * SLOT
            rid, status = self.end.read(page, at, 2), self.end.read(page, at + 2, 2)
            seen = self.seen = (seen + 1) % U32
            key = int.from_bytes(rid, "little")
            if key in self.lent:
                pfn, gref, length = self.lent.pop(key)
                self.heard.append(None if any(status) else self.end.read(pfn, 0, length))
                self.end.unshare(pfn, gref)
        self.end.store32(page, 12, (seen + 1) % U32)


class FrontNoWrap(EchoFrontend):
    """It compares indices as numbers."""

    def event(self):
        page = self.shared[0][0]
        if self.end.load32(page, 8) >= self.ring.ring.rsp_cons:
            super().event()


class Sure(EchoFrontend):
    """It is sure that each response is to something."""

    def answered(self, response):
        pfn, gref, length = self.lent.pop(response.id)
        self.heard.append(self.end.read(pfn, 0, length))
        self.end.unshare(pfn, gref)


class Full(EchoFrontend):
    """It stops after a ring of calls."""

    def shout(self, text):
        if self.next_id < 128:
            super().shout(text)
        else:
            self.heard.append(None)


class Fragile(EchoFrontend):
    """It counts on a response for each event."""

    def event(self):
        responses = self.ring.take()
        assert responses
        for response in responses:
            self.answered(response)
        self.event_again()

    def event_again(self):
        while self.ring.final_check():
            for response in self.ring.take():
                self.answered(response)


class FrontOnlyKnown(EchoFrontend):
    """It knows two states of a backend."""

    def backend_changed(self, state):
        assert state in (XenbusState.INITIALISING, XenbusState.INIT_WAIT, XenbusState.CONNECTED)
        super().backend_changed(state)


class Open(EchoFrontend):
    """It does not close with its backend."""

    def backend_changed(self, state):
        if state is not XenbusState.CLOSING:
            super().backend_changed(state)


class ReadsProd(EchoFrontend):
    """It goes by the index in the page, not by its own."""

    def event(self):
        page = self.shared[0][0]
        in_flight = self.end.load32(page, 0) - self.end.load32(page, 8)
        assert 0 <= in_flight <= 128
        super().event()


# the case's number: an end that fails it
BACKENDS = {
    "901": OwnLoop, "902": Rewinds, "903": NoWrap, "904": Limited, "910": Asserts, "911": AnswersAll,
    "912": Asserts, "913": Asserts, "920": Waits, "921": AnswersAll, "946": NoAnew,
    "947": OnlyKnown, "948": OnlyKnown,
    **{str(930 + at): Believes for at in range(7)},
    **{str(940 + at): Believes for at in range(4)},
}  # fmt: skip
FRONTENDS = {
    "951": NoCheck, "952": Sure, "953": Sure, "954": Sure, "955": Sure, "956": Sure, "957": FrontNoWrap,
    "958": Full, "959": Fragile, "960": FrontOnlyKnown, "961": Open, "962": FrontOnlyKnown,
    "963": ReadsProd,
}  # fmt: skip
