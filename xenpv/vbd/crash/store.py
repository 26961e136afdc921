"""The crash driver's own client of xenstored (xencrsh store.c).

It takes the ring from the driver that died: every port is closed, the one to xenstored bound
anew, the page zeroed. Requests go out one at a time. A step of the driver asks for what it
needs in a row; where an answer is not there yet it ends by UnansweredError and is repeated
later, and what was answered before is not asked again.
"""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.evtchn import EVTCHNSTAT
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.layout import offsetof, packer
from xenpv.abi.xs import XS
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.vbd.crash.failure import CrashError, UnansweredError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import NS_PER_MS

POLL_NS: Final = 50 * NS_PER_MS  # STORE_PERIOD
# 30 s for an answer, not counted while the domain is paused; the original waits for ever.
POLLS_MAX: Final = 600

HEADER: Final = packer("xsd_sockmsg")  # type, req_id, tx_id, len
PAGE: Final = "xenstore_domain_interface"
RING_SIZE: Final[int] = lib.XENSTORE_RING_SIZE
REQ: Final = (
    offsetof(PAGE, "req"), RING_SIZE, offsetof(PAGE, "req_cons"), offsetof(PAGE, "req_prod"),
)  # fmt: skip
RSP: Final = (
    offsetof(PAGE, "rsp"), RING_SIZE, offsetof(PAGE, "rsp_cons"), offsetof(PAGE, "rsp_prod"),
)  # fmt: skip
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
# Far above the 16 bits of XenBus: what xenstored still sends to the dead driver is no answer.
FIRST_REQ_ID: Final = 0x504C_0000
ROUNDS_MAX: Final = 64  # of reading and writing the ring in one poll
TRANSACTIONS_MAX: Final = 100
LOST: Final = ("EIO", "ETIMEDOUT")
SWIZZLE: Final[int] = lib.XENMAPSPACE_gmfn


class CrashStore:
    """`section` is the page of the image at which the ring is mapped."""

    def __init__(self, domain: Domain, section: int) -> None:
        self.domain = domain
        self.section = section
        self.pfn = self._home = 0  # of the ring; and where it was
        self.port = 0
        self.requests = 0
        self._answers: list[bytes | StoreError] = []  # of this step
        self._at = 0
        self._unsent = b""
        self._received = bytearray()
        self._asked: tuple[int, int] | None = None  # type and req_id of what is not answered
        self._polls = 0  # since it was asked

    def attach(self) -> None:
        """Take the ring over. HypercallError; CrashError where there is no xenstored."""
        domain, hvm = self.domain, self.domain.hvm
        me, index = domain.DOMID_SELF, HVM_PARAM.STORE_EVTCHN
        status = domain.evtchn.status(hvm.get_param(me, index))
        if status.status != EVTCHNSTAT.interdomain:
            raise CrashError("the port of xenstored is not bound")
        domain.evtchn.reset()
        self.port = domain.evtchn.bind_interdomain(status.remote_domid, status.remote_port)
        hvm.set_param(me, index, self.port)
        self._home = hvm.get_param(me, HVM_PARAM.STORE_PFN)
        self.pfn = self._map(self._home)
        domain.write(self.pfn, 0, bytes(PAGE_SIZE))
        domain.evtchn.send(self.port)

    def _map(self, pfn: int) -> int:
        """The ring moves to the image's page; where it cannot, it is used where it is."""
        try:
            self.domain.memory.add_to_physmap(self.domain.DOMID_SELF, SWIZZLE, pfn, self.section)
        except HypercallError:
            return pfn
        return self.section

    def detach(self) -> None:
        """The ring goes back to where the toolstack put it; nothing is asked after this."""
        if self.pfn == self._home:
            return
        me = self.domain.DOMID_SELF
        self.domain.memory.add_to_physmap(me, SWIZZLE, self.pfn, self._home)
        self.pfn = self._home

    # a step's requests

    def begin(self) -> None:
        """A step begins, or begins again."""
        self._at = 0

    def settle(self) -> None:
        """The step is done: what it was answered is not needed again."""
        self._answers.clear()
        self._at = 0

    def _request(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """Its reply's payload. StoreError as xenstored says, EIO or ETIMEDOUT; UnansweredError."""
        if self._at == len(self._answers):
            if self._asked is None:
                self._send(kind, payload, tx_id)
            self._answers.append(self._await())
            self._asked = None
        answer = self._answers[self._at]
        self._at += 1
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def _send(self, kind: int, payload: bytes, tx_id: int) -> None:
        if len(payload) > PAYLOAD_MAX:
            raise StoreError("E2BIG", f"{len(payload)} bytes", operation=XS(kind).name)
        req_id = FIRST_REQ_ID + self.requests
        self.requests += 1
        self._asked = (kind, req_id)
        self._unsent = HEADER.pack(kind, req_id, tx_id, len(payload)) + payload
        self._polls = 0

    def _await(self) -> bytes | StoreError:
        assert self._asked is not None
        kind, req_id = self._asked
        for _ in range(ROUNDS_MAX):
            moved = self._exchange()
            found = self._find(kind, req_id)
            if found is not None:
                return found
            if not moved and not self.domain.evtchn.poll(self.port):
                break  # xenstored has nothing to do
        self._polls += 1
        if self._polls > POLLS_MAX:
            self._unsent = b""
            return StoreError("ETIMEDOUT", "xenstored does not answer", operation=XS(kind).name)
        raise UnansweredError

    def _exchange(self) -> bool:
        """What fits into the ring, and what is in it; whether that was anything."""
        kernel = self.domain.kernel
        count = self._check(lib.stream_put(kernel, self.pfn, *REQ, self._unsent, len(self._unsent)))
        self._unsent = self._unsent[count:]
        chunk = bytearray(RING_SIZE)
        pointer: Any = ffi.from_buffer(chunk)
        taken = self._check(lib.stream_get(kernel, self.pfn, *RSP, pointer, RING_SIZE))
        self._received += chunk[:taken]
        if count or taken:
            self.domain.evtchn.send(self.port)
        return bool(count or taken)

    def _check(self, count: int) -> int:
        if count < 0:
            self.domain.fail(count, "xenstore ring")
        return count

    def _find(self, kind: int, req_id: int) -> bytes | StoreError | None:
        """The answer, wherever it begins: before it may be events for the dead driver's watches,
        its replies, and the rest of either, cut off where the page was zeroed.
        """
        received = self._received
        starts = [received.find(HEADER.pack(one, req_id, 0, 0)[:8]) for one in (kind, XS.ERROR)]
        start = min((one for one in starts if one >= 0), default=-1)
        if start < 0:
            del received[: max(0, len(received) - HEADER.size)]
            return None
        del received[:start]
        if len(received) < HEADER.size:
            return None
        found, _req_id, _tx_id, length = HEADER.unpack_from(received)
        if length > PAYLOAD_MAX:
            received.clear()
            return StoreError("EIO", f"a reply of {length} bytes", operation=XS(kind).name)
        end = HEADER.size + length
        if len(received) < end:
            return None
        payload = bytes(received[HEADER.size : end])
        del received[:end]
        if found == XS.ERROR:
            name = payload.rstrip(b"\0").decode("ascii", "replace")
            return StoreError(name, operation=XS(kind).name)
        return payload

    # requests by name

    def read(self, path: str, tx_id: int = 0) -> str | None:
        """A value; None where xenstored refuses it. StoreError where it does not answer."""
        try:
            reply = self._request(XS.READ, _path(path), tx_id)
        except StoreError as error:
            if error.name in LOST:
                raise
            return None
        return reply.decode("utf-8", "replace").split("\0", 1)[0]

    def write(self, path: str, value: str, tx_id: int = 0) -> None:
        self._request(XS.WRITE, _path(path) + value.encode(), tx_id)

    def remove(self, path: str, tx_id: int = 0) -> None:
        """Where there is nothing, nothing happens."""
        try:
            self._request(XS.RM, _path(path), tx_id)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def directory(self, path: str) -> list[str]:
        reply = self._request(XS.DIRECTORY, _path(path))
        return [name for name in reply.decode("utf-8", "replace").split("\0") if name]

    def write_all(self, path: str, values: dict[str, str]) -> None:
        """In a transaction; StoreError EAGAIN after 100 conflicts, where the original goes on."""
        for _ in range(TRANSACTIONS_MAX):
            text = self._request(XS.TRANSACTION_START, b"\0").split(b"\0", 1)[0]
            tx_id = int(text) if text.isdigit() and len(text) < 11 else 0
            if not 0 < tx_id < 1 << 32:
                raise StoreError("EIO", "no transaction", operation="TRANSACTION_START")
            try:
                for key, value in values.items():
                    self.write(f"{path}/{key}", value, tx_id)
            except StoreError:
                self._end(tx_id, b"F\0")
                raise
            if self._end(tx_id, b"T\0"):
                return
        raise StoreError("EAGAIN", f"{TRANSACTIONS_MAX} conflicts", path=path)

    def _end(self, tx_id: int, how: bytes) -> bool:
        try:
            self._request(XS.TRANSACTION_END, how, tx_id)
        except StoreError as error:
            if error.name == "EAGAIN":
                return False
            raise
        return True


def _path(path: str) -> bytes:
    return path.encode() + b"\0"


# What may come out of a step that asks: the ring, or the answer, is not what it can be.
ERRORS: Final = (StoreError, HypercallError, PeerProtocolError, CrashError)
