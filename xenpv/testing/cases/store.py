"""Cases of xenstored: framing, the tree, paths, transactions. Watches are in storewatch, guests
and their rings in storeguest and storehostile.

    check_store()                              # ours
    check_store("/run/xenstored/socket")       # any xenstored, over its Unix socket
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from xenpv.abi.xs import XS
from xenpv.store.wire import HEADER
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.storescene import NO_TX, Connect, StoreScene, end_of
from xenpv.testing.cases.suite import CaseResult, Suite

SUITE = Suite("store", "STORE-", StoreScene)

DOC = "docs/misc/xenstore.txt"
WIRE = "io/xs_wire.h"
CORE = "tools/xenstored/core.c"
PATHS = "docs/misc/xenstore-paths.pandoc"
TRANSACTION = "tools/xenstored/transaction.c"


def check_store(
    connect: Connect | str | Path | None = None,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    seed: int = 0,
) -> list[CaseResult]:
    """Every case of the suite "store" against the xenstored that `connect` leads to.

    None: ours. A path: that of a Unix socket. A callable: gives a connected stream (sendall,
    recv, close) at each call; one with the methods of `storescene.StoreEnd` is asked also what
    guests may do. Raises CasesFailed; LocalProtocolError for an unknown id.
    """
    from xenpv.testing.cases import suite

    return suite("store").check(end_of(connect), only=only, without=without, seed=seed)


# framing


@SUITE.case(
    "STORE-001",
    "replies and errors carry the type, request id and transaction id that they answer",
    source=f"{WIRE}, struct xsd_sockmsg",
    expected="the header of the reply repeats req_id and tx_id",
    hostile=False,
)
def _echo(s: StoreScene) -> None:
    tx = s.main.start()
    for op, path, kind in ((XS.READ, "/", XS.READ), (XS.READ, s.at("none"), XS.ERROR)):
        s.main.send(op, path.encode() + b"\0", tx=tx, req_id=0xDEADBEEF)
        expect(s.main.reply()[:3], (kind, 0xDEADBEEF, tx), f"header that answers READ {path}")
    expect(s.main.end(tx, "F"), "OK", "TRANSACTION_END")


@SUITE.case(
    "STORE-002",
    "requests that are sent together are answered in their order",
    source=f"{DOC}; libxenstore sends req_id 0 always",
    expected="one reply each, in order",
    hostile=False,
)
def _order(s: StoreScene) -> None:
    path = s.at("n").encode()
    data = b""
    for number in range(12):
        value = b"%b\0%d" % (path, number)
        data += HEADER.pack(XS.WRITE, number, 0, len(value)) + value
        data += HEADER.pack(XS.READ, 100 + number, 0, len(path) + 1) + path + b"\0"
    s.main.stream.sendall(data)
    for number in range(12):
        expect(s.main.reply()[:2], (XS.WRITE, number), "reply to a WRITE")
        expect(s.main.reply(), (XS.READ, 100 + number, 0, b"%d" % number), "reply to a READ")


@SUITE.case(
    "STORE-003",
    "a request may come byte by byte",
    source=f"{CORE}, handle_input",
    expected="it is served when its last byte is there",
    hostile=False,
)
def _bytewise(s: StoreScene) -> None:
    payload = s.at("slow").encode() + b"\0value"
    for byte in HEADER.pack(XS.WRITE, 7, 0, len(payload)) + payload:
        s.main.stream.sendall(bytes([byte]))
    expect(s.main.reply(), (XS.WRITE, 7, 0, b"OK\0"), "reply")
    expect(s.main.read(s.at("slow")), "value", "READ")


@SUITE.case(
    "STORE-004",
    "types that no client may send are ENOSYS, and the connection goes on",
    source=f"{CORE}, process_message",
    expected="ERROR ENOSYS for 15, 16, 20 and what is beyond the last type",
    requires=("c",),
)
def _types(s: StoreScene) -> None:
    for op in (15, 16, 20, 27, 255, 0xFFFFFFFF):
        expect(s.main.answer_to(op, b"/\0"), "ENOSYS", f"type {op}")
        expect(s.main.answer_to(op, b"", tx=NO_TX), "ENOSYS", f"type {op} without a payload")
    expect(s.main.read("/"), "", "READ afterwards")


@SUITE.case(
    "STORE-005",
    "a length above 4,096, also one that looks negative, ends the connection",
    source=f"{WIRE}, XENSTORE_PAYLOAD_MAX; XSA-420",
    expected="the socket is closed, nothing is answered; others go on",
    requires=("c",),
)
def _length(s: StoreScene) -> None:
    for length in (4097, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        client = s.client()
        client.stream.sendall(HEADER.pack(XS.READ, 0, 0, length))
        expect(client.hung_up(), True, f"closed after a length of {length:#x}")
        expect(s.main.read("/"), "", "READ of another client")


@SUITE.case(
    "STORE-006",
    "a reply over 4,096 bytes is refused",
    source="XSA-72; docs/misc/xenstore.txt, E2BIG",
    expected="DIRECTORY is E2BIG, DIRECTORY_PART gives the same names in pieces",
    requires=("c",),
)
def _long_reply(s: StoreScene) -> None:
    names = ["n" * 200 + str(number) for number in range(30)]
    for name in names:
        expect(s.main.write(s.at(f"d/{name}")), "OK", "WRITE of a child")
    expect(s.main.ls(s.at("d")), "E2BIG", "DIRECTORY")
    found = ""
    generation = ""
    while not found.endswith("\0\0"):
        reply = s.main.ask(XS.DIRECTORY_PART, f"{s.at('d')}\0{len(found)}\0") + "\0"
        counter, _, part = reply.partition("\0")
        expect_one(counter, (generation or counter,), "the generation of a directory at rest")
        expect(0 < len(part) <= 4096, True, "a piece with names in it")
        generation, found = counter, found + part
    expect(found[:-2].split("\0"), names, "names of all pieces")


@SUITE.case(
    "STORE-007",
    "a request for one path needs exactly one NUL, its last byte",
    source=f"{CORE}, onearg",
    expected="EINVAL",
    requires=("newest",),  # of 4.17 the answer is a stale errno, and it dies of a 0
)
def _one_argument(s: StoreScene) -> None:
    for op in (XS.READ, XS.DIRECTORY, XS.GET_PERMS, XS.MKDIR, XS.RM, XS.GET_DOMAIN_PATH):
        for payload in (b"", b"/", b"/\0\0", b"/\0x", b"/\0x\0"):
            expect(s.main.answer_to(op, payload), "EINVAL", f"{op.name} of {payload!r}")
    expect(s.main.read("/"), "", "READ afterwards")


# the tree


BAD_PATHS = ("", "//", "/a/", "/a//b", "//a", "/a b", "/a!", "/a\xff", "/a\n", "/a%")


@SUITE.case(
    "STORE-010",
    "paths that are none",
    source=f"{PATHS}; {CORE}, is_valid_nodename",
    expected="EINVAL from every request, and nothing is made",
)
def _bad_paths(s: StoreScene) -> None:
    for path in BAD_PATHS:
        for op in (XS.READ, XS.WRITE, XS.MKDIR, XS.RM, XS.DIRECTORY, XS.GET_PERMS, XS.SET_PERMS):
            rest = {XS.WRITE: "v", XS.SET_PERMS: "n0\0"}.get(op, "")
            expect(s.main.ask(op, f"{path}\0{rest}"), "EINVAL", f"{op.name} of {path!r}")
    expect(s.main.ls(s.root), "", "children of the case's directory")


@SUITE.case(
    "STORE-011",
    "a path that ends with the prefix of a home",
    source="XSA-481",
    expected="EINVAL; the server lives",
    requires=("newest",),
)
def _home_prefix(s: StoreScene) -> None:
    for path in ("/local/domain/", "/local/domain//", "/local/domain/1/", "/local/domain/x/"):
        for op in (XS.READ, XS.WRITE, XS.MKDIR, XS.WATCH):
            rest = "t\0" if op is XS.WATCH else ""
            expect(s.main.ask(op, f"{path}\0{rest}"), "EINVAL", f"{op.name} of {path}")


@SUITE.case(
    "STORE-012",
    "writing makes the parents, removing takes the children along",
    source=DOC,
    expected="missing nodes are ENOENT; RM of one is OK where the parent is there",
    requires=("xenstored",),
    hostile=False,
)
def _parents(s: StoreScene) -> None:
    expect(s.main.write(s.at("a/b/c"), "1"), "OK", "WRITE below nothing")
    expect(s.main.read(s.at("a/b")), "", "READ of an implicit parent")
    expect(s.main.ls(s.at("a")), "b", "DIRECTORY")
    expect(s.main.mkdir(s.at("a/b/c")), "OK", "MKDIR of a node that is there")
    expect(s.main.read(s.at("a/b/c")), "1", "READ after that MKDIR")
    expect(s.main.rm(s.at("a")), "OK", "RM")
    for path in ("a", "a/b", "a/b/c"):
        expect(s.main.read(s.at(path)), "ENOENT", f"READ of {path}")
    expect(s.main.rm(s.at("a")), "OK", "RM of a missing node with a parent")
    expect(s.main.rm(s.at("a/b")), "ENOENT", "RM of one without")
    expect(s.main.ls(s.at("a")), "ENOENT", "DIRECTORY of a missing node")


@SUITE.case(
    "STORE-013",
    "a value is any bytes, up to what a message holds",
    source=f"{WIRE}, XENSTORE_PAYLOAD_MAX",
    expected="what was written is read, NULs and all",
    hostile=False,
    requires=("c",),  # oxenstored has a limit of 2,048
)
def _values(s: StoreScene) -> None:
    path = s.at("v").encode()
    for value in (b"", b"\0", bytes(range(256)), b"x\0", b"v" * (4096 - len(path) - 1)):
        expect(s.main.answer_to(XS.WRITE, path + b"\0" + value), "OK", f"WRITE of {len(value)}")
        s.main.send(XS.READ, path + b"\0")
        expect(s.main.reply()[3], value, "READ")


@SUITE.case(
    "STORE-014",
    "children are listed in the order of their creation",
    source=f"{CORE}, add_child; xenstored's oldest habit",
    expected="a removed name leaves, made again it comes last",
    hostile=False,
    requires=("c",),
)
def _children(s: StoreScene) -> None:
    for name in ("2", "1", "3"):
        s.main.mkdir(s.at(name))
    expect(s.main.ls(s.root), "2 1 3", "DIRECTORY")
    s.main.rm(s.at("2"))
    s.main.mkdir(s.at("2"))
    expect(s.main.ls(s.root), "1 3 2", "DIRECTORY after RM and MKDIR")


@SUITE.case(
    "STORE-015",
    "permissions: what is set is told, what is no permission is refused",
    source=f"{CORE}, do_set_perms",
    expected="letters and domids as written; EINVAL else, and the node keeps its own",
    hostile=False,
)
def _permissions(s: StoreScene) -> None:
    s.main.mkdir(s.at("p"))
    expect(s.main.chmod(s.at("p"), "b0", "r0", "w0"), "OK", "SET_PERMS")
    expect(s.main.perms(s.at("p")), "b0 r0 w0", "GET_PERMS")
    for odd in ("x0", "r", "", "0"):
        expect(s.main.chmod(s.at("p"), odd), "EINVAL", f"SET_PERMS {odd!r}")
    expect(s.main.chmod(s.at("none"), "n0"), "ENOENT", "SET_PERMS of a missing node")
    expect(s.main.perms(s.at("p")), "b0 r0 w0", "GET_PERMS after refusals")
    s.main.mkdir(s.at("p/child"))
    expect(s.main.perms(s.at("p/child")), "b0 r0 w0", "GET_PERMS of a new child")


@SUITE.case(
    "STORE-016",
    "a thousand levels can be made and removed",
    source="XSA-418",
    expected="OK; the server's stack does not grow with the tree",
    hostile=False,
)
def _deep(s: StoreScene) -> None:
    path = s.at("/".join(["a"] * 1000))
    expect(s.main.write(path, "bottom"), "OK", "WRITE")
    expect(s.main.read(path), "bottom", "READ")
    expect(s.main.rm(s.at("a")), "OK", "RM of the top")
    expect(s.main.read(path), "ENOENT", "READ afterwards")


@SUITE.case(
    "STORE-017",
    "numbers of domains that are none",
    source=f"{CORE}, get_domid",
    expected="EINVAL for trailing junk and what 16 bits do not hold",
    requires=("newest",),  # 4.17 reads them with atoi
)
def _domids(s: StoreScene) -> None:
    for text in ("1x", "x", "65536", "99999999999999999999", "-1", "1 "):
        for op in (XS.GET_DOMAIN_PATH, XS.IS_DOMAIN_INTRODUCED, XS.RELEASE):
            expect(s.main.ask(op, f"{text}\0"), "EINVAL", f"{op.name} of {text!r}")
    expect(s.main.ask(XS.GET_DOMAIN_PATH, "65535\0"), "/local/domain/65535", "GET_DOMAIN_PATH")


@SUITE.case(
    "STORE-018",
    "domains that are not there",
    source="tools/xenstored/domain.c, do_release, do_introduce",
    expected="RELEASE ENOENT, of dom0 EINVAL; INTRODUCE with port 0 EINVAL",
    hostile=False,
    requires=("newest",),
)
def _nobody(s: StoreScene) -> None:
    expect(s.main.ask(XS.RELEASE, "999\0"), "ENOENT", "RELEASE of nobody")
    expect(s.main.ask(XS.RELEASE, "0\0"), "EINVAL", "RELEASE of dom0")
    expect(s.main.ask(XS.INTRODUCE, "999\x001\x000\0"), "EINVAL", "INTRODUCE with port 0")
    expect(s.main.ask(XS.INTRODUCE, "999\x001\0"), "EINVAL", "INTRODUCE without a port")
    expect(s.main.ask(XS.SET_TARGET, "999\x00998\0"), "ENOENT", "SET_TARGET of nobody")
    expect(s.main.ask(XS.IS_DOMAIN_INTRODUCED, "999\0"), "F", "IS_DOMAIN_INTRODUCED")


# transactions


@SUITE.case(
    "STORE-020",
    "a transaction is seen by nobody until it ends",
    source=DOC,
    expected="its own view inside, the old one outside; all of it at once at the end",
    hostile=False,
)
def _isolated(s: StoreScene) -> None:
    s.main.write(s.at("a"), "old")
    tx = s.main.start()
    expect(s.main.write(s.at("a"), "new", tx), "OK", "WRITE inside")
    expect(s.main.write(s.at("b/c"), "made", tx), "OK", "WRITE of a new node inside")
    expect(s.main.read(s.at("a"), tx), "new", "READ inside")
    expect((s.main.read(s.at("a")), s.main.read(s.at("b"))), ("old", "ENOENT"), "READ outside")
    expect(s.main.end(tx), "OK", "TRANSACTION_END")
    expect((s.main.read(s.at("a")), s.main.read(s.at("b/c"))), ("new", "made"), "READ at the end")


@SUITE.case(
    "STORE-021",
    "a transaction that is aborted was not",
    source=DOC,
    expected="nothing changed; its id is gone",
    hostile=False,
)
def _aborted(s: StoreScene) -> None:
    s.main.write(s.at("a"), "old")
    tx = s.main.start()
    s.main.write(s.at("a"), "new", tx)
    s.main.rm(s.at("a"), tx)
    s.main.mkdir(s.at("b"), tx)
    expect(s.main.end(tx, "F"), "OK", "TRANSACTION_END F")
    expect((s.main.read(s.at("a")), s.main.ls(s.root)), ("old", "a"), "the tree")
    expect_one(s.main.end(tx), ("ENOENT", "EIO"), "a second TRANSACTION_END")


@SUITE.case(
    "STORE-022",
    "a read-modify-write loses to a change meanwhile",
    source=f"{DOC}, EAGAIN; tools/tests/xenstore, ta err",
    expected="EAGAIN, nothing of it is applied, the id is consumed",
    hostile=False,
)
def _conflict(s: StoreScene) -> None:
    s.main.write(s.at("a"), "1")
    tx = s.main.start()
    expect(s.main.read(s.at("a"), tx), "1", "READ inside")
    s.main.write(s.at("a"), "2", tx)
    s.main.write(s.at("b"), "2", tx)
    s.client().write(s.at("a"), "other")
    expect(s.main.read(s.at("a"), tx), "2", "READ inside after the change")
    expect(s.main.end(tx), "EAGAIN", "TRANSACTION_END")
    expect((s.main.read(s.at("a")), s.main.read(s.at("b"))), ("other", "ENOENT"), "the tree")
    expect_one(s.main.end(tx), ("ENOENT", "EIO"), "TRANSACTION_END of a consumed id")


@SUITE.case(
    "STORE-023",
    "a write that read nothing conflicts too",
    source=f"{TRANSACTION}, access_node",
    expected="EAGAIN: every operation is checked, also of a value that did not change",
    hostile=False,
    requires=("c",),
)
def _blind(s: StoreScene) -> None:
    s.main.write(s.at("a"), "1")
    tx = s.main.start()
    s.main.write(s.at("a"), "mine", tx)
    s.client().write(s.at("a"), "1")
    expect(s.main.end(tx), "EAGAIN", "TRANSACTION_END")
    expect(s.main.read(s.at("a")), "1", "READ")


@SUITE.case(
    "STORE-024",
    "two transactions delete the same",
    source="XSA-440",
    expected="the second is EAGAIN; the server lives",
    requires=("c",),
)
def _deletes(s: StoreScene) -> None:
    s.main.write(s.at("a/b"), "v")
    first, second = s.main.start(), s.main.start()
    for tx in (first, second):
        expect(s.main.rm(s.at("a"), tx), "OK", "RM inside")
    expect(s.main.end(first), "OK", "the first TRANSACTION_END")
    expect(s.main.end(second), "EAGAIN", "the second")
    expect(s.main.ls(s.root), "", "what is left")


@SUITE.case(
    "STORE-025",
    "no transaction begins inside one, and an end that is none leaves it open",
    source=f"{TRANSACTION}, do_transaction_start, do_transaction_end",
    expected="EBUSY; EINVAL, and the transaction is still there",
    requires=("c",),
)
def _nested(s: StoreScene) -> None:
    tx = s.main.start()
    expect(s.main.ask(XS.TRANSACTION_START, "\0", tx), "EBUSY", "TRANSACTION_START inside")
    for how in ("X", "", "TT", "t"):
        expect(s.main.end(tx, how), "EINVAL", f"TRANSACTION_END {how!r}")
    expect(s.main.write(s.at("a"), "v", tx), "OK", "WRITE afterwards")
    expect(s.main.end(tx), "OK", "TRANSACTION_END T")
    expect(s.main.read(s.at("a")), "v", "READ")


@SUITE.case(
    "STORE-026",
    "transaction ids that nobody started, or somebody else did",
    source=f"{TRANSACTION}, transaction_lookup",
    expected="ENOENT, and nothing happens",
    requires=("c",),
)
def _foreign(s: StoreScene) -> None:
    other = s.client()
    expect(other.start(), 1, "the first id of a connection")
    for tx in (1, NO_TX, 0xFFFFFFFF):
        expect(s.main.write(s.at("a"), "v", tx), "ENOENT", f"WRITE in transaction {tx}")
        expect(s.main.end(tx), "ENOENT", f"TRANSACTION_END of {tx}")
    expect(s.main.end(0), "ENOENT", "TRANSACTION_END of none")
    expect(s.main.ls(s.root), "", "what is there")


@SUITE.case(
    "STORE-027",
    "what a transaction did not find counts as read",
    source=f"{TRANSACTION}, access_node",
    expected="EAGAIN once it is created; no conflict with what is elsewhere",
    hostile=False,
    requires=("c",),
)
def _missing(s: StoreScene) -> None:
    other = s.client()
    for path in ("d", "e", "b"):
        s.main.mkdir(s.at(path))
    for elsewhere, ends in (("d/q", "EAGAIN"), ("e/q", "OK")):
        tx = s.main.start()
        expect(s.main.read(s.at("d/q"), tx), "ENOENT", "READ inside")
        s.main.write(s.at("b"), "v", tx)
        other.write(s.at(elsewhere), "made")
        expect(s.main.end(tx), ends, f"TRANSACTION_END after {elsewhere} was made")
        other.rm(s.at(elsewhere))


@SUITE.case(
    "STORE-028",
    "a subtree is removed while somebody writes into it",
    source=f"{TRANSACTION}, finalize_transaction; XSA-421",
    expected="EAGAIN, and the subtree is whole",
    requires=("c",),
)
def _subtree(s: StoreScene) -> None:
    s.main.write(s.at("a/b"), "1")
    s.main.write(s.at("a/c"), "1")
    tx = s.main.start()
    expect(s.main.rm(s.at("a"), tx), "OK", "RM inside")
    expect(s.main.read(s.at("a/b"), tx), "ENOENT", "READ inside")
    s.client().write(s.at("a/b"), "2")
    expect(s.main.end(tx), "EAGAIN", "TRANSACTION_END")
    expect((s.main.read(s.at("a/b")), s.main.ls(s.at("a"))), ("2", "b c"), "the tree")


@SUITE.case(
    "STORE-029",
    "transactions that touch different nodes both commit",
    source="ocaml-xenstore server_test, independent_transactions_coalesce",
    expected="OK twice",
    requires=("xenstored",),
    hostile=False,
)
def _independent(s: StoreScene) -> None:
    for name in ("a/x", "b/x"):
        s.main.write(s.at(name), "0")
    first, second = s.main.start(), s.main.start()
    for tx, name in ((first, "a/x"), (second, "b/x")):
        s.main.read(s.at(name), tx)
        s.main.write(s.at(name), "1", tx)
    expect((s.main.end(first), s.main.end(second)), ("OK", "OK"), "the ends")
    expect((s.main.read(s.at("a/x")), s.main.read(s.at("b/x"))), ("1", "1"), "the values")


@SUITE.case(
    "STORE-030",
    "a transaction's copy of a node is made when it is first touched",
    source=f"{TRANSACTION}, access_node",
    expected="a change between START and the first READ is seen, and no conflict",
    hostile=False,
    requires=("c",),
)
def _first_access(s: StoreScene) -> None:
    s.main.write(s.at("a"), "1")
    tx = s.main.start()
    s.client().write(s.at("a"), "2")
    expect(s.main.read(s.at("a"), tx), "2", "the first READ inside")
    s.main.write(s.at("b"), "v", tx)
    expect(s.main.end(tx), "OK", "TRANSACTION_END")


@SUITE.case(
    "STORE-031",
    "a client that hangs up inside a transaction",
    source=f"{CORE}, destroy_conn",
    expected="the transaction never was; its watches are gone",
)
def _vanished(s: StoreScene) -> None:
    other = s.client()
    tx = other.start()
    expect(other.write(s.at("a"), "v", tx), "OK", "WRITE inside")
    expect(other.watch(s.root, "t"), "OK", "WATCH")
    other.close()
    expect(s.main.write(s.at("b"), "v"), "OK", "WRITE of another client")
    expect(s.main.ls(s.root), "b", "what is there")


@SUITE.case(
    "STORE-032",
    "RESET_WATCHES inside a transaction",
    source="XSA-484",
    expected="OK: watches and transactions of the caller are gone",
    requires=("newest",),
)
def _reset(s: StoreScene) -> None:
    s.main.watch(s.root, "t")
    tx = s.main.start()
    s.main.write(s.at("a"), "v", tx)
    expect(s.main.ask(XS.RESET_WATCHES, "\0", tx), "OK", "RESET_WATCHES")
    expect(s.main.end(tx), "ENOENT", "TRANSACTION_END")
    s.main.heard()
    s.main.write(s.at("b"), "v")
    expect((s.main.heard(), s.main.ls(s.root)), ([], "b"), "events, and what is there")
