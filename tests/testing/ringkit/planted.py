"""Mistakes in the ends of examples/own_protocol.py, one each, that the kit must find."""

from __future__ import annotations

from examples.own_protocol import ECHO, ERROR, OKAY, EchoBackend, EchoFrontend, Sleepy
from xenpv.errors import GrantError

HEADER = 64
SLOT = 16
__all__ = ["BACKENDS", "FRONTENDS", "Sleepy"]


class EventFirst(EchoBackend):
    """Asks for an event, then takes, and looks no more."""

    def event(self):
        self.ring.final_check()
        for request in self.ring.take():
            self.answer(self.serve(request))


class DoubleFetch(EchoBackend):
    """Checks the length in the slot, and reads it from the slot again."""

    def serve(self, request):
        at = HEADER + (self.ring.ring.req_cons - 1) % self.ring.size * SLOT
        if self.end.load32(self.pfns[0], at + 4) > 4096:
            return ECHO.response(id=request.id, status=ERROR)
        request.length = self.end.load32(self.pfns[0], at + 4)
        return super().serve(request)


class Trusting(EchoBackend):
    """Maps the page and reads as many bytes as it is told."""

    def write_back(self, request):
        try:
            pfn = self.end.map(request.gref)
        except GrantError:
            return False
        text = self.end.read(pfn, request.offset, request.length)
        self.end.write(pfn, request.offset, text.upper())
        self.end.unmap(pfn)
        return True


class Leaky(EchoBackend):
    """Writes a response with what the stack had behind it."""

    def answer(self, response):
        index = self.ring.ring.rsp_prod
        super().answer(response)
        at = HEADER + index % self.ring.size * SLOT
        self.end.write(self.pfns[0], at + len(response), b"\x7fsecrets")


class Keeps(EchoBackend):
    """Forgets a page that it mapped where the request fails."""

    def write_back(self, request):
        try:
            pfn = self.end.map(request.gref)
        except GrantError:
            return False
        if request.offset + request.length > 4096:
            return False
        text = self.end.read(pfn, request.offset, request.length)
        self.end.write(pfn, request.offset, text.upper())
        self.end.unmap(pfn)
        return True


class Silent(EchoBackend):
    """Never tells its frontend."""

    def answer(self, response):
        self.ring.push(response)


class Twice(EchoBackend):
    """Answers the first request of a batch with the id of the second."""

    def event(self):
        while True:
            requests = self.ring.take()
            ids = [one.id for one in requests]
            for request, rid in zip(requests, ids[1:] + ids[-1:], strict=True):
                self.write_back(request)
                self.answer(ECHO.response(id=rid, status=OKAY))
            if not self.ring.final_check():
                return


class Raises(EchoBackend):
    """Lets a failed grant out of its handler."""

    def write_back(self, request):
        text = self.end.copy_from(request.gref, request.offset, request.length)
        self.end.copy_to(request.gref, request.offset, text.upper())
        return True


class Once(EchoBackend):
    """Does not let go when its frontend begins anew."""

    def disconnect(self):
        pass


class WholePage(EchoBackend):
    """Writes the page back whole."""

    def write_back(self, request):
        if request.offset + request.length > 4096:
            return False
        try:
            page = self.end.copy_from(request.gref, 0, 4096)
            self.end.copy_to(request.gref, 0, page.upper())
        except GrantError:
            return False
        return True


class Index(EchoFrontend):
    """Looks its pages up by what the backend says."""

    def answered(self, response):
        pfn, gref, length = list(self.lent.values())[response.id - min(self.lent, default=0)]
        del self.lent[response.id]
        self.heard.append(self.end.read(pfn, 0, length))
        self.end.unshare(pfn, gref)


class SameId(EchoFrontend):
    """Uses an id that is in flight again."""

    def shout(self, text):
        if not self.can_send:
            return
        pfn, gref = self.end.share(text)
        self.lent[self.next_id & 1 | len(self.lent) << 8] = pfn, gref, len(text)
        self.send(ECHO.request(id=self.next_id & 1, length=len(text), gref=gref))
        self.next_id += 1

    def answered(self, response):
        for key in [one for one in self.lent if one & 1 == response.id][:1]:
            pfn, gref, length = self.lent.pop(key)
            self.heard.append(self.end.read(pfn, 0, length))
            self.end.unshare(pfn, gref)


class SleepyFront(EchoFrontend):
    """Takes what is there and does not look again."""

    def event(self):
        for response in self.ring.take():
            self.answered(response)
        self.ring.final_check()


class Shows(EchoFrontend):
    """Lends a page with something else in it."""

    def shout(self, text):
        if not self.can_send:
            self.heard.append(None)
            return
        pfn, gref = self.end.share(text + b"\0private")
        self.lent[self.next_id] = pfn, gref, len(text)
        self.send(ECHO.request(id=self.next_id, length=len(text), gref=gref))
        self.next_id += 1


class Forgets(EchoFrontend):
    """Keeps the pages of requests that were never answered."""

    def disconnect(self):
        super(EchoFrontend, self).disconnect()
        self.lent = {}


class Unasked(EchoFrontend):
    """Believes a response that answers nothing."""

    def answered(self, response):
        if response.id in self.lent:
            super().answered(response)


BACKENDS = (
    Sleepy, EventFirst, DoubleFetch, Trusting, Leaky, Keeps, Silent, Twice, Raises, Once, WholePage,
)  # fmt: skip
FRONTENDS = (Index, SameId, SleepyFront, Shows, Forgets, Unasked)
