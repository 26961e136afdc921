"""net-backend: the control ring and the queues it chooses (io/netif.h; Linux hash.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netback import SUITE
from xenpv.testing.cases.netframes import (
    GUEST_MAC,
    PEER_MAC,
    TOEPLITZ,
    TOEPLITZ_KEY,
    UDP,
    Flow,
    packet,
)
from xenpv.testing.cases.netscene import (
    BAD_REF,
    TASKS_MAX,
    BackendScene,
)
from xenpv.testing.cases.netslots import (
    BUFFER_OVERFLOW,
    CTRL_REQUEST,
    EXTRA_INFO,
    GET_HASH_FLAGS,
    GET_MAPPING_SIZE,
    HASH,
    INVALID_PARAMETER,
    NOT_SUPPORTED,
    SET_ALGORITHM,
    SET_HASH_FLAGS,
    SET_HASH_KEY,
    SET_MAPPING,
    SET_MAPPING_SIZE,
    SUCCESS,
    TOEPLITZ_ALGORITHM,
)

ALL_TYPES: Final = 0xF
QUEUES: Final = 4
TABLE: Final = 8  # entries of the mapping
POSTED: Final = 24


@SUITE.case(
    "NETB-301",
    "control requests are answered in order, with their id and type",
    source="io/netif.h, xen_netif_ctrl_response",
    expected="one response for each request; of a type that there is not NOT_SUPPORTED",
    requires=("feature-ctrl-ring",),
    hostile=False,
)
def answers(s: BackendScene) -> None:
    s.connect(control=True)
    front = s.front
    kinds = [GET_MAPPING_SIZE, 0, 11, 0xFFFF, GET_MAPPING_SIZE]
    packed = b"".join(CTRL_REQUEST.pack(at, kind, 0, 0, 0) for at, kind in enumerate(kinds))
    front.ctrl.push(packed, len(kinds))
    front.send_event(front.ctrl_channel)
    s.run()
    found = [_response(raw) for raw in front.ctrl.take()]
    expect([one[:2] for one in found], list(enumerate(kinds)), "ids and types")
    refused = [one[2] for one in found[1:4]]
    expect(refused, [NOT_SUPPORTED] * 3, "statuses of types that there are not")
    size = found[0][3]
    holds(found[0][2] == SUCCESS and size, f"a mapping of {size} entries at most")


@SUITE.case(
    "NETB-302",
    "a key for Toeplitz",
    source="io/netif.h, Toeplitz hash; Microsoft's verification suite",
    expected="the HASH extra has the bit number of the type, algorithm 1 and Microsoft's value",
    requires=("feature-ctrl-ring",),
    hostile=False,
)
def toeplitz(s: BackendScene) -> None:
    s.connect(control=True)
    _hash(s)
    for flow, plain, ports in TOEPLITZ:
        first = 0 if flow.version == 4 else 2
        for protocol, bit, value in ((6, first + 1, ports), (UDP, first, plain)):
            s.post(2)
            s.deliver(_to_guest(flow, protocol))
            got = single(s.packets(), "packets that were received")
            expect(bool(got.flags & EXTRA_INFO), True, "extra_info")
            body = bytes((HASH, 0, bit, TOEPLITZ_ALGORITHM)) + value.to_bytes(4, "little")
            expect(got.extras, [body], f"the extra of {flow}")


@SUITE.case(
    "NETB-303",
    "hash types that are off",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    expected="TCP is hashed by its addresses if only the plain type is on, else it has no extra",
    requires=("feature-ctrl-ring",),
    hostile=False,
)
def hash_types(s: BackendScene) -> None:
    s.connect(control=True)
    _hash(s)
    flow, plain, _ = TOEPLITZ[0]
    for mask, wanted in ((1, [(0, plain)]), (2, None), (0xC, []), (0, [])):
        s.expect_success(SET_HASH_FLAGS, mask)
        s.post(2)
        s.deliver(_to_guest(flow, UDP if mask == 2 else 6))
        got = single(s.packets(), "packets that were received")
        hashes = [(one[2], int.from_bytes(one[4:8], "little")) for one in got.extras]
        expect(hashes, wanted or [], f"hashes with types {mask:#x}")


@SUITE.case(
    "NETB-304",
    "a mapping of hashes to queues",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    expected="hash % size is the entry, which is the queue",
    requires=("feature-ctrl-ring", "4 queues"),
    hostile=False,
)
def mapping(s: BackendScene) -> None:
    table = [3, 1, 0, 2, 2, 1, 1, 2]
    _connect_hashed(s, table)
    _expect_mapping(s, table)


@SUITE.case(
    "NETB-305",
    "a mapping that is changed in its middle",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: data[2] is an offset",
    expected="the entries from the offset on change, and no others",
    requires=("feature-ctrl-ring", "4 queues"),
    hostile=False,
)
def mapping_offset(s: BackendScene) -> None:
    _connect_hashed(s, [0] * TABLE)
    s.expect_success(SET_MAPPING, _table(s, [1, 2, 3]), 3, 4)
    _expect_mapping(s, [0, 0, 0, 0, 1, 2, 3, 0])


@SUITE.case(
    "NETB-306",
    "no mapping",
    source="io/netif.h, Mapping hash values to queues: size 0",
    expected="the queue is the hash modulo the number of queues",
    requires=("feature-ctrl-ring", "4 queues"),
    hostile=False,
)
def modulo(s: BackendScene) -> None:
    _connect_hashed(s, [3] * TABLE)
    s.expect_success(SET_MAPPING_SIZE, 0)
    for flow, _, ports in TOEPLITZ:
        expect(_queue_of(s, flow), ports % QUEUES, f"the queue of hash {ports:#x}")


@SUITE.case(
    "NETB-307",
    "one flow keeps to one queue while nothing is hashed",
    source="io/netif.h, XEN_NETIF_CTRL_HASH_ALGORITHM_NONE",
    expected="the choice is the backend's, but the packets of a flow stay in order",
    requires=("4 queues",),
    hostile=False,
)
def own_choice(s: BackendScene) -> None:
    s.connect(queues=QUEUES)
    for flow, _, _ in TOEPLITZ:
        chosen = [_queue_of(s, flow) for _ in range(4)]
        expect(chosen, chosen[:1] * 4, "queues of one flow")


@SUITE.case(
    "NETB-308",
    "a mapping whose offset and length wrap",
    source="XSA-270, CVE-2018-15471",
    expected="refused, and the old table stays",
    requires=("feature-ctrl-ring", "4 queues"),
)
def mapping_wraps(s: BackendScene) -> None:
    table = [3, 1, 0, 2, 2, 1, 1, 2]
    _connect_hashed(s, table)
    ref = _table(s, [0] * 1024)
    for count, offset in (
        (2, 0xFFFFFFFF),
        (0xFFFFFFFF, 1),
        (8, 0xFFFFFFF8),
        (0x80000000, 0x80000000),
    ):
        s.expect_no_success(SET_MAPPING, ref, count, offset)
    _expect_mapping(s, table)


@SUITE.case(
    "NETB-309",
    "a mapping that is longer than the table",
    source="Linux hash.c, xenvif_set_hash_mapping",
    expected="refused, and the old table stays",
    requires=("feature-ctrl-ring", "4 queues"),
)
def mapping_too_long(s: BackendScene) -> None:
    table = [3, 1, 0, 2, 2, 1, 1, 2]
    _connect_hashed(s, table)
    ref = _table(s, [0] * 1024)
    for count, offset in ((9, 0), (1, 8), (4, 5), (1024, 0), (1025, 0)):
        s.expect_no_success(SET_MAPPING, ref, count, offset)
    _expect_mapping(s, table)


@SUITE.case(
    "NETB-310",
    "a mapping to a queue that there is not",
    source="XSA-270; Linux hash.c: an entry >= the number of queues",
    expected="refused whole: not even the entries before it are taken",
    requires=("feature-ctrl-ring", "4 queues"),
)
def mapping_bad_queue(s: BackendScene) -> None:
    table = [3, 1, 0, 2, 2, 1, 1, 2]
    _connect_hashed(s, table)
    for bad in (QUEUES, 0xFFFFFFFF, 0x80000000):
        entries = [0, 0, 0, 0, 0, bad, 0, 0]
        s.expect_no_success(SET_MAPPING, _table(s, entries), 8, 0)
        _expect_mapping(s, table)


@SUITE.case(
    "NETB-311",
    "a mapping, and a key, in a page that nobody granted",
    source="XSA-361; Linux hash.c: a copy that fails",
    expected="refused, and what was there stays",
    requires=("feature-ctrl-ring", "4 queues"),
)
def bad_pages(s: BackendScene) -> None:
    table = [3, 1, 0, 2, 2, 1, 1, 2]
    _connect_hashed(s, table)
    s.expect_no_success(SET_MAPPING, BAD_REF, 8, 0)
    s.expect_no_success(SET_HASH_KEY, BAD_REF, 40)
    _expect_mapping(s, table)


@SUITE.case(
    "NETB-312",
    "a key that is too long",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
    expected="BUFFER_OVERFLOW, or INVALID_PARAMETER as Linux says; the old key stays",
    requires=("feature-ctrl-ring",),
)
def long_key(s: BackendScene) -> None:
    s.connect(control=True)
    _hash(s)
    ref = s.page(bytes(4096))
    for size in (4096, 4097, 0xFFFFFFFF):
        status, _ = s.ask(SET_HASH_KEY, ref, size)
        holds(status in (BUFFER_OVERFLOW, INVALID_PARAMETER), f"status {status}")
    flow, _, ports = TOEPLITZ[0]
    s.post(2)
    s.deliver(_to_guest(flow, 6))
    got = single(s.packets(), "packets that were received")
    expect(int.from_bytes(got.extras[0][4:8], "little"), ports, "the hash")


@SUITE.case(
    "NETB-313",
    "a mapping size above the maximum",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE",
    expected="refused",
    requires=("feature-ctrl-ring",),
)
def mapping_size(s: BackendScene) -> None:
    s.connect(control=True)
    most = s.expect_success(GET_MAPPING_SIZE)
    s.expect_success(SET_MAPPING_SIZE, most)
    for size in (most + 1, 0x40000001, 0xFFFFFFFF):
        s.expect_no_success(SET_MAPPING_SIZE, size)


@SUITE.case(
    "NETB-314",
    "an algorithm, and hash types, that there are not",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, _SET_HASH_FLAGS",
    expected="INVALID_PARAMETER",
    requires=("feature-ctrl-ring",),
)
def bad_algorithm(s: BackendScene) -> None:
    s.connect(control=True)
    for algorithm in (2, 0xFFFFFFFF):
        expect(s.ask(SET_ALGORITHM, algorithm)[0], INVALID_PARAMETER, f"algorithm {algorithm}")
    s.expect_success(SET_ALGORITHM, TOEPLITZ_ALGORITHM)
    for mask in (0x10, 0xFFFFFFFF):
        expect(s.ask(SET_HASH_FLAGS, mask)[0], INVALID_PARAMETER, f"types {mask:#x}")


@SUITE.case(
    "NETB-315",
    "hash types without an algorithm",
    source="io/netif.h, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, _SET_HASH_FLAGS",
    expected="GET is NOT_SUPPORTED and SET INVALID_PARAMETER; with Toeplitz all four are there",
    requires=("feature-ctrl-ring",),
    hostile=False,
)
def without_algorithm(s: BackendScene) -> None:
    s.connect(control=True)
    expect(s.ask(GET_HASH_FLAGS)[0], NOT_SUPPORTED, "GET")
    expect(s.ask(SET_HASH_FLAGS, 1)[0], INVALID_PARAMETER, "SET")
    s.expect_success(SET_ALGORITHM, TOEPLITZ_ALGORITHM)
    expect(s.ask(GET_HASH_FLAGS), (SUCCESS, ALL_TYPES), "GET")


@SUITE.case(
    "NETB-316",
    "req_prod of the control ring runs past it",
    source="io/ring.h, RING_REQUEST_PROD_OVERFLOW; Linux does not look",
    expected="no endless loop; the device can be closed and used",
    requires=("feature-ctrl-ring",),
)
def producer_past_ring(s: BackendScene) -> None:
    for ahead in (129, 0x7FFFFFFF, 0xFFFFFFFF):
        s.connect(control=True)
        s.front.ctrl.req_prod = ahead
        s.front.send_event(s.front.ctrl_channel)
        holds(s.run() < TASKS_MAX, "the backend runs on and on")
        answered = s.front.ctrl.rsp_prod
        holds(answered <= 128, f"{answered} responses to requests that nobody made")
        s.expect_usable()
        s.expect_released()
        s.front.write_key("state", "1")
        s.run()


@SUITE.case(
    "NETB-317",
    "every byte of a control request is fetched once",
    source="XSA-155; Linux xenvif_ctrl_irq_fn, RING_COPY_REQUEST",
    expected="copied before it is looked at, and so are the key and the mapping",
    requires=("feature-ctrl-ring", "4 queues"),
)
def single_fetches(s: BackendScene) -> None:
    s.connect(queues=QUEUES, control=True)
    s.watch_fetches()
    _hash(s)
    s.expect_success(SET_MAPPING_SIZE, TABLE)
    s.expect_success(SET_MAPPING, _table(s, [0] * TABLE), TABLE, 0)
    s.expect_single_fetches()


@SUITE.case(
    "NETB-318",
    "a control ring without an event channel",
    source="Linux xenbus.c, connect_ctrl_ring",
    expected="not Connected; or Connected without a control ring",
    requires=("feature-ctrl-ring",),
)
def ring_without_port(s: BackendScene) -> None:
    state = s.begin({"event-channel-ctrl": None}, control=True)
    if state.name == "CONNECTED":
        expect(s.front.ask(GET_MAPPING_SIZE), [], "responses of the control ring")
    s.expect_usable()


@SUITE.case(
    "NETB-319",
    "what is configured is forgotten with the connection",
    source="Linux keeps it over a reconnection, with queues that may be gone",
    expected="a new connection with fewer queues receives all frames in queues that there are",
    requires=("feature-ctrl-ring", "4 queues"),
)
def fewer_queues(s: BackendScene) -> None:
    _connect_hashed(s, [3] * TABLE)
    s.expect_released()
    s.front.write_key("state", "1")
    s.run()
    s.connect(queues=2, control=True)
    for queue in range(2):
        s.post(POSTED, queue)
    for flow, _, _ in TOEPLITZ:
        s.deliver(_to_guest(flow, 6))
    got = sum(len(s.packets(queue)) for queue in range(2))
    expect(got, len(TOEPLITZ), "frames that came")


def _to_guest(flow: Flow, protocol: int) -> bytes:
    return packet(80, flow=flow, protocol=protocol, source=PEER_MAC, destination=GUEST_MAC)


def _response(raw: bytes) -> tuple[int, int, int, int]:
    number, kind = (int.from_bytes(raw[at : at + 2], "little") for at in (0, 2))
    status, data = (int.from_bytes(raw[at : at + 4], "little") for at in (4, 8))
    return number, kind, status, data


def _hash(s: BackendScene) -> None:
    """Toeplitz with the key of the suite and all types."""
    s.expect_success(SET_ALGORITHM, TOEPLITZ_ALGORITHM)
    s.expect_success(SET_HASH_KEY, s.page(TOEPLITZ_KEY, readonly=False), len(TOEPLITZ_KEY))
    s.expect_success(SET_HASH_FLAGS, ALL_TYPES)


def _table(s: BackendScene, entries: Sequence[int]) -> int:
    """A reference to a page of these u32."""
    return s.page(b"".join(one.to_bytes(4, "little") for one in entries), readonly=False)


def _connect_hashed(s: BackendScene, table: Sequence[int]) -> None:
    """QUEUES queues, Toeplitz and this mapping."""
    s.connect(queues=QUEUES, control=True)
    _hash(s)
    s.expect_success(SET_MAPPING_SIZE, TABLE)
    s.expect_success(SET_MAPPING, _table(s, table), TABLE, 0)


def _queue_of(s: BackendScene, flow: Flow) -> int:
    """Where a TCP packet of the flow is received. CheckFailed: nowhere."""
    for queue in range(QUEUES):
        if s.waiting(queue) < 2:
            s.post(2, queue)
    s.deliver(_to_guest(flow, 6))
    found = [queue for queue in range(QUEUES) if s.packets(queue)]
    holds(len(found) == 1, f"a frame in queues {found}")
    return found[0]


def _expect_mapping(s: BackendScene, table: Sequence[int]) -> None:
    for flow, _, ports in TOEPLITZ:
        wanted = table[ports % len(table)]
        expect(_queue_of(s, flow), wanted, f"the queue of hash {ports:#x}")
