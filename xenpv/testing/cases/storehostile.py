"""Cases of xenstored: guests that break their ring, flood it, or never read. Of stores with
guests.
"""

from __future__ import annotations

from xenpv.abi.xs import XS
from xenpv.store.wire import HEADER
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.store import SUITE
from xenpv.testing.cases.storeclient import (
    CONNECTION,
    ERROR,
    REQ_CONS,
    REQ_PROD,
    RING_BYTES,
    RSP_CONS,
    RSP_PROD,
    SERVER_FEATURES,
)
from xenpv.testing.cases.storescene import Guest, StoreScene

RING = "docs/misc/xenstore-ring.txt"
GUESTS = ("guests",)
ERROR_RINGIDX, ERROR_PROTO = 2, 3  # XENSTORE_ERROR_*


def _frozen(s: StoreScene, guest: Guest, other: Guest, error: int, what: str) -> None:
    """The ring says why, is served no more, and nobody else notices."""
    guest.settle()
    if "c" in s.features:
        expect(guest.word(ERROR), error, f"`error` after {what}")
    prod = guest.word(RSP_PROD)
    guest.poke(REQ_PROD, guest.word(REQ_CONS))
    guest.settle()
    expect(guest.word(RSP_PROD), prod, f"rsp_prod after {what}")
    expect(other.write("n", "v"), "OK", f"WRITE of another guest after {what}")
    expect(s.main.read("/"), "", f"READ of a client after {what}")
    introduced = s.main.ask(XS.IS_DOMAIN_INTRODUCED, f"{guest.domid}\0")
    expect(introduced, "T", f"IS_DOMAIN_INTRODUCED after {what}")


@SUITE.case(
    "STORE-080",
    "a request index that runs past the ring",
    source="XSA-38; io/xs_wire.h, XENSTORE_ERROR_RINGIDX",
    expected="`error` 2, the ring is not served on; the domain stays introduced",
    requires=GUESTS,
)
def _request_index(s: StoreScene) -> None:
    other = s.guest()
    for distance in (RING_BYTES + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        guest = s.guest()
        guest.poke(REQ_PROD, guest.word(REQ_CONS) + distance)
        _frozen(s, guest, other, ERROR_RINGIDX, f"req_prod - req_cons = {distance:#x}")


@SUITE.case(
    "STORE-081",
    "a response index that runs past the ring",
    source="XSA-38; io/xs_wire.h, XENSTORE_ERROR_RINGIDX",
    expected="`error` 2, nothing is written over",
    requires=GUESTS,
)
def _response_index(s: StoreScene) -> None:
    other = s.guest()
    for ahead in (1, RING_BYTES, 0x80000000):
        guest = s.guest()
        guest.read("n")
        guest.poke(RSP_CONS, guest.word(RSP_PROD) + ahead)
        guest.send(XS.READ, b"n\0")
        _frozen(s, guest, other, ERROR_RINGIDX, f"rsp_cons ahead by {ahead:#x}")


@SUITE.case(
    "STORE-082",
    "a length above 4,096 in a ring",
    source=f"XSA-420; {RING}, XENSTORE_ERROR_PROTO",
    expected="`error` 3, the ring is not served on",
    requires=(*GUESTS, "c"),
)
def _length(s: StoreScene) -> None:
    other = s.guest()
    for length in (4097, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        guest = s.guest()
        guest.stream.sendall(HEADER.pack(XS.READ, 0, 0, length) + b"x" * 64)
        _frozen(s, guest, other, ERROR_PROTO, f"a length of {length:#x}")


@SUITE.case(
    "STORE-083",
    "a domain that broke its ring dies",
    source="XSA-325",
    expected="@releaseDomain at its death, not before; its nodes go",
    requires=(*GUESTS, "c"),
)
def _release(s: StoreScene) -> None:
    guest = s.guest()
    guest.write("mine", "v")
    s.main.watch("@releaseDomain", "r")
    s.main.heard()
    guest.poke(REQ_PROD, guest.word(REQ_CONS) + RING_BYTES + 1)
    guest.settle()
    expect(s.main.heard(), [], "events when the ring is broken")
    s.die(guest)
    expect(s.main.heard(), ["@releaseDomain r"], "events at its death")
    expect(s.main.read(f"{guest.home}/mine"), "ENOENT", "READ of a node of its own")


@SUITE.case(
    "STORE-084",
    "a guest that asks and never reads",
    source="XSA-326; xenstored --help, outstanding",
    expected="its ring is read no further; others are served; once it reads, it gets all",
    requires=(*GUESTS, "xenstored"),
)
def _never_reads(s: StoreScene) -> None:
    guest, other = s.guest(), s.guest()
    guest.write("big", "v" * 1500)
    asked = 0
    request = HEADER.pack(XS.READ, 0, 0, 4) + b"big\0"
    for _ in range(60):
        room = RING_BYTES - (guest.word(REQ_PROD) - guest.word(REQ_CONS) & 0xFFFFFFFF)
        if room < len(request):
            break
        guest.stream.sendall(request)
        guest.settle()
        asked += 1
    expect(asked < 200, True, "the ring fills")
    for number in range(20):
        expect(other.write(f"n{number}", "v"), "OK", "WRITE of another guest")
    for _ in range(asked):
        expect(len(guest.reply()[3]), 1500, "a reply, in the end")
    expect(guest.write("n", "v"), "OK", "WRITE when all is read")


@SUITE.case(
    "STORE-085",
    "replies that are never read keep no memory of the guest's",
    source="XSA-416",
    expected="any number of rounds of them: no ENOMEM",
    requires=(*GUESTS, "c"),
)
def _memory(s: StoreScene) -> None:
    guest = s.guest()
    guest.write("big", "v" * 1500)
    for _ in range(130):  # 130 * 15 * 1,516 bytes are over the quota of memory
        for _ in range(15):
            guest.send(XS.READ, b"big\0")
        for _ in range(15):
            expect(len(guest.reply()[3]), 1500, "a reply")
    expect(guest.watch("w", "t"), "OK", "WATCH, which the quota of memory would refuse")


@SUITE.case(
    "STORE-086",
    "events for a guest that never reads",
    source="XSA-326; xenstored --timeout, watch-event",
    expected="they are bounded; the writer is served",
    requires=(*GUESTS, "c"),
)
def _events(s: StoreScene) -> None:
    guest = s.guest()
    guest.watch(guest.home, "t" * 500)
    guest.heard()
    for number in range(6000):
        name = f"{guest.home}/{number % 700}"
        expect(s.main.write(name, str(number)), "OK", "WRITE of dom0")
    expect(s.main.read(f"{guest.home}/1"), "5601", "READ of dom0")
    received = 0
    while events := guest.heard():
        received += len(events)
    expect(received <= 800, True, "700 paths and what was in the ring are all that was kept")
    expect(guest.read("1"), "5601", "READ of the guest once it reads")


@SUITE.case(
    "STORE-087",
    "a guest that writes without end while somebody has a transaction",
    source="XSA-206; tools/xenstored/domain.c, wrl_*",
    expected="it is slowed down; the transaction can commit",
    requires=(*GUESTS, "c", "clock"),
)
def _flood(s: StoreScene) -> None:
    guest, other = s.guest(), s.guest()
    tx = other.start()
    other.write("n", "v", tx)
    before = s.now
    for number in range(60):
        expect(guest.write("n", str(number)), "OK", "WRITE of the flood")
    expect(s.now - before >= 200_000_000, True, "60 writes took 0.2 s of time at least")
    expect(other.end(tx), "OK", "TRANSACTION_END")


@SUITE.case(
    "STORE-088",
    "bytes for more than the ring holds, in both directions",
    source="io/xs_wire.h, XENSTORE_RING_SIZE",
    expected="a request of 3,000 bytes is served, its value read back",
    requires=(*GUESTS, "c"),
    hostile=False,
)
def _through(s: StoreScene) -> None:
    guest = s.guest()
    s.main.write(f"{guest.home}/big", "")
    s.main.chmod(f"{guest.home}/big", f"b{guest.domid}")
    for size in (900, 1024, 1500, 1900):
        value = "".join(chr(97 + at % 26) for at in range(size))
        expect(guest.write("big", value), "OK", f"WRITE of {size} bytes")
        expect(guest.read("big"), value, f"READ of {size} bytes")


@SUITE.case(
    "STORE-089",
    "a live guest asks for a reconnection",
    source=f"{RING}, XENSTORE_SERVER_FEATURE_RECONNECTION",
    expected="a server that does not offer it goes on as if nothing was asked",
    requires=(*GUESTS, "c"),
)
def _reconnect(s: StoreScene) -> None:
    guest = s.guest()
    expect(guest.word(SERVER_FEATURES) & 1, 0, "server_features, bit 0")
    guest.watch("w", "t")
    guest.heard()
    guest.poke(CONNECTION, 1)
    guest.settle()
    expect(guest.write("w", "v"), "OK", "WRITE")
    expect(guest.heard(), ["w t"], "events of its watch")
    guest.poke(CONNECTION, 0)


@SUITE.case(
    "STORE-090",
    "garbage of every type from a guest",
    source="io/xs_wire.h; XSA-326",
    expected="one ERROR for each, none of another guest's nodes is touched",
    requires=(*GUESTS, "newest"),
)
def _garbage(s: StoreScene) -> None:
    guest, other = s.guest(), s.guest()
    other.write("theirs", "v")
    victim = f"{other.home}/theirs"
    asked = [op for op in range(30) if op not in (XS.TRANSACTION_START, XS.RESET_WATCHES)]
    for op in asked:
        for payload in (b"\xff" * 40, victim.encode() + b"\0", b"\0" * 9):
            if op in (XS.GET_DOMAIN_PATH, XS.WATCH, XS.UNWATCH, XS.GET_FEATURE):
                continue  # some of it is legal there
            guest.send(op, payload, req_id=op)
            expect(guest.reply()[:2], (XS.ERROR, op), f"answer to type {op} of {payload!r}")
    expect(other.read("theirs"), "v", "READ of the other guest")
    expect(s.main.perms(victim), f"n{other.domid}", "GET_PERMS of it")
