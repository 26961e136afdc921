"""Cases of xenstored: watches and their events."""

from __future__ import annotations

from xenpv.abi.xs import XS
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.store import DOC, SUITE
from xenpv.testing.cases.storescene import StoreScene

WATCH = "tools/xenstored/watch.c"
NO_NODE = "never"


@SUITE.case(
    "STORE-040",
    "a watch fires once when it is set, after its reply, also where nothing is",
    source=f"{DOC}, WATCH",
    expected="OK, then one event with the path and token as given",
    hostile=False,
)
def _initial(s: StoreScene) -> None:
    path = s.at(NO_NODE).encode()
    s.main.send(XS.WATCH, path + b"\0my token\0", req_id=9)
    expect(s.main.receive()[:2], (XS.WATCH, 9), "what comes first")
    event = (XS.WATCH_EVENT, 0, 0, path + b"\0my token\0")
    expect(s.main.receive(), event, "the initial event")
    expect(s.main.heard(), [], "what comes later")


@SUITE.case(
    "STORE-041",
    "a client hears of its own change before the change is answered",
    source=f"{WATCH}, fire_watches; send_reply comes after",
    expected="WATCH_EVENT, then the reply",
    requires=("c",),
    hostile=False,
)
def _before_reply(s: StoreScene) -> None:
    s.main.watch(s.at("a"), "t")
    s.main.heard()
    path = s.at("a").encode()
    s.main.send(XS.WRITE, path + b"\0v")
    expect(s.main.receive(), (XS.WATCH_EVENT, 0, 0, path + b"\0t\0"), "what comes first")
    expect(s.main.receive(), (XS.WRITE, 0, 0, b"OK\0"), "what comes next")


@SUITE.case(
    "STORE-042",
    "one watch of a path and token; without it nothing comes",
    source=f"{WATCH}, do_watch, do_unwatch",
    expected="EEXIST for the second, ENOENT for removing what is not there",
)
def _twice(s: StoreScene) -> None:
    expect(s.main.watch(s.root, "t"), "OK", "WATCH")
    expect(s.main.watch(s.root, "t"), "EEXIST", "WATCH again")
    expect(s.main.watch(s.root, "u"), "OK", "WATCH with another token")
    expect(s.main.unwatch(s.root, "v"), "ENOENT", "UNWATCH of a token that is none")
    s.main.heard()
    expect(s.main.unwatch(s.root, "t"), "OK", "UNWATCH")
    s.main.write(s.at("a"), "v")
    expect(s.main.heard(), [f"{s.at('a')} u"], "events")
    expect(s.main.unwatch(s.root, "t"), "ENOENT", "UNWATCH again")


@SUITE.case(
    "STORE-043",
    "watches see what is at their path and below, on whole names",
    source=f"{WATCH}, watch_is_for_node",
    expected="events of a, a/b and nothing of ab or a's parent",
    hostile=False,
)
def _below(s: StoreScene) -> None:
    s.main.watch(s.at("a"), "t")
    s.main.heard()
    for path in ("a", "ab", "a/b", "a/b/c", "b/a", "A"):
        s.main.write(s.at(path), "v")
    expect(s.main.heard(), [f"{s.at(path)} t" for path in ("a", "a/b", "a/b/c")], "events")


@SUITE.case(
    "STORE-044",
    "what changes nothing fires nothing; the same value again does",
    source=f"{WATCH}; tools/xenstored/core.c, do_mkdir",
    expected="no event of refused requests and of MKDIR of what is there; one for a WRITE",
    hostile=False,
)
def _nothing(s: StoreScene) -> None:
    s.main.write(s.at("a"), "v")
    s.main.watch(s.root, "t")
    s.main.heard()
    s.main.mkdir(s.at("a"))
    s.main.rm(s.at("none/none"))
    s.main.chmod(s.at("none"), "n0")
    s.main.write(s.at("a//"), "v")
    expect(s.main.heard(), [], "events of what changed nothing")
    s.main.write(s.at("a"), "v")
    expect(s.main.heard(), [f"{s.at('a')} t"], "events of the same value")
    s.main.chmod(s.at("a"), "r0")
    expect(s.main.heard(), [f"{s.at('a')} t"], "events of SET_PERMS")


@SUITE.case(
    "STORE-045",
    "parents that are made on the way fire nothing of their own",
    source=f"{WATCH}, fire_watches",
    expected="one event, of the node that was written",
    requires=("c",),
    hostile=False,
)
def _implicit(s: StoreScene) -> None:
    s.main.watch(s.root, "t")
    s.main.heard()
    s.main.write(s.at("a/b/c"), "v")
    expect(s.main.heard(), [f"{s.at('a/b/c')} t"], "events")


@SUITE.case(
    "STORE-046",
    "a subtree goes: whoever watches a node of it hears of that node",
    source=f"{WATCH}, fire_watches of removed children",
    expected="the descendants first, each to its own watch; those never made stay silent",
    requires=("c",),
    hostile=False,
)
def _removed(s: StoreScene) -> None:
    s.main.write(s.at("a/b/c"), "v")
    for path, token in (("", "top"), ("a/b/c", "leaf"), (f"a/{NO_NODE}", "none"), ("a", "root")):
        s.main.watch(s.at(path).rstrip("/"), token)
    s.main.heard()
    s.main.rm(s.at("a"))
    events = [f"{s.at('a/b/c')} leaf", f"{s.at('a')} top", f"{s.at('a')} root"]
    expect(s.main.heard(), events, "events")


@SUITE.case(
    "STORE-047",
    "relative watches are answered with relative paths",
    source=f"{WATCH}, get_watch_path",
    expected="the path without the caller's home",
    requires=("xenstored",),
    hostile=False,
)
def _relative(s: StoreScene) -> None:
    expect(s.main.watch("xenpv-cases", "t"), "OK", "WATCH of a relative path")
    expect(s.main.heard(), ["xenpv-cases t"], "the initial event")
    s.main.write("/local/domain/0/xenpv-cases/x", "v")
    expect(s.main.heard(), ["xenpv-cases/x t"], "an event")
    expect(s.main.unwatch("/local/domain/0/xenpv-cases", "t"), "OK", "UNWATCH by the whole path")
    s.main.rm("/local/domain/0/xenpv-cases")


@SUITE.case(
    "STORE-048",
    "events come to clients in the order of their watches",
    source=f"{WATCH}, list of a connection",
    expected="by registration",
    requires=("c",),
    hostile=False,
)
def _ordered(s: StoreScene) -> None:
    tokens = ("z", "a", "m")
    for token, path in zip(tokens, (s.at("x"), s.root, s.at("x")), strict=True):
        s.main.watch(path, token)
    s.main.heard()
    s.main.write(s.at("x"), "v")
    expect(s.main.heard(), [f"{s.at('x')} {token}" for token in tokens], "events")


@SUITE.case(
    "STORE-049",
    "a transaction's changes are told when it commits, each once",
    source="tools/xenstored/transaction.c, fire_watches of finalize",
    expected="no event before; one for a node that was written twice; none of what is gone again",
    requires=("c",),
    hostile=False,
)
def _committed(s: StoreScene) -> None:
    s.main.watch(s.root, "t")
    s.main.heard()
    tx = s.main.start()
    for path, value in (("a", "1"), ("b", "1"), ("a", "2"), ("gone", "1")):
        s.main.write(s.at(path), value, tx)
    s.main.rm(s.at("gone"), tx)
    expect(s.main.heard(), [], "events before the end")
    expect(s.main.end(tx), "OK", "TRANSACTION_END")
    expect(s.main.heard(), [f"{s.at('a')} t", f"{s.at('b')} t"], "events at the end")
    tx = s.main.start()
    s.main.write(s.at("a"), "3", tx)
    s.main.end(tx, "F")
    expect(s.main.heard(), [], "events of one that was aborted")


@SUITE.case(
    "STORE-050",
    "an event that would not fit into a message is dropped",
    source="XSA-324",
    expected="nothing of it comes, later ones do; the server lives",
    requires=("c",),  # the rule and the advisory are of C xenstored
)
def _oversize(s: StoreScene) -> None:
    token = "t" * 2500
    expect(s.main.watch(s.root, token), "OK", "WATCH with a long token")
    s.main.heard()
    long_path = s.at("/".join(["b" * 240] * 8))
    expect(s.main.write(long_path, "v"), "OK", "WRITE whose event is over 4,096 bytes")
    expect(s.main.heard(), [], "events")
    s.main.write(s.at("c"), "v")
    expect(s.main.heard(), [f"{s.at('c')} {token}"], "events of a short path")


@SUITE.case(
    "STORE-051",
    "watches with a depth",
    source="docs/misc/xenstore-ring.txt, XENSTORE_SERVER_FEATURE_WATCHDEPTH",
    expected="0 is the node alone, 1 its children too; a negative one is EINVAL",
    requires=("newest",),
)
def _depth(s: StoreScene) -> None:
    for depth, seen in (("0", ["a"]), ("1", ["a", "a/b"]), ("2", ["a", "a/b", "a/b/c"])):
        expect(s.main.watch(s.at("a"), depth, depth), "OK", f"WATCH of depth {depth}")
        s.main.heard()
        for path in ("a", "a/b", "a/b/c"):
            s.main.write(s.at(path), "v")
        expect(s.main.heard(), [f"{s.at(path)} {depth}" for path in seen], f"at depth {depth}")
        s.main.unwatch(s.at("a"), depth)
    expect(s.main.watch(s.at("a"), "t", "-1"), "EINVAL", "WATCH of depth -1")
    expect(s.main.watch(s.at("a"), "t", "1", "1"), "EINVAL", "WATCH with four strings")


@SUITE.case(
    "STORE-052",
    "WATCH and UNWATCH with other strings than they take",
    source=f"{WATCH}, get_strings",
    expected="EINVAL, and no watch is set",
    requires=("xenstored",),
)
def _strings(s: StoreScene) -> None:
    for payload in ("\0", f"{s.root}\0", s.root):
        expect(s.main.ask(XS.WATCH, payload), "EINVAL", f"WATCH {payload!r}")
        expect(s.main.ask(XS.UNWATCH, payload), "EINVAL", f"UNWATCH {payload!r}")
    s.main.write(s.at("a"), "v")
    expect(s.main.heard(), [], "events")


@SUITE.case(
    "STORE-053",
    "RESET_WATCHES takes every watch of the caller, and of nobody else",
    source="XSA-330; docs/misc/xenstore.txt, RESET_WATCHES",
    expected="OK, silence; what it had may be set again",
    hostile=False,
)
def _reset(s: StoreScene) -> None:
    other = s.client()
    other.watch(s.root, "o")
    other.heard()
    for _ in range(3):
        for number in range(100):
            expect(s.main.watch(s.root, str(number)), "OK", f"WATCH {number}")
        expect(s.main.ask(XS.RESET_WATCHES, "\0"), "OK", "RESET_WATCHES")
        s.main.heard()
        s.main.write(s.at("a"), "v")
        expect(s.main.heard(), [], "events afterwards")
        expect(other.heard(), [f"{s.at('a')} o"], "events of another client")


@SUITE.case(
    "STORE-054",
    "a watch that fires for a client that has gone",
    source="XSA-425; tools/xenstored/core.c, connections are freed in the loop",
    expected="the others get theirs",
)
def _gone(s: StoreScene) -> None:
    clients = [s.client() for _ in range(5)]
    for client in clients:
        client.watch(s.root, "t")
        client.heard()
    for client in clients[::2]:
        client.close()
    s.main.write(s.at("a"), "v")
    for client in clients[1::2]:
        expect(client.heard(), [f"{s.at('a')} t"], "events of one that stayed")
