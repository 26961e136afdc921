"""Cases of xenstored: what a guest may, hears of and takes with it. Of stores with guests."""

from __future__ import annotations

from collections.abc import Callable

from xenpv.abi.xs import XS
from xenpv.testing.cases.claims import Wrong, expect, expect_one
from xenpv.testing.cases.store import CORE, SUITE
from xenpv.testing.cases.storescene import StoreScene

DOMAIN = "tools/xenstored/domain.c"
GUESTS = ("guests",)
QUOTA_ERRORS = ("ENOSPC", "E2BIG", "EQUOTA")
QUOTA_SEARCH = 1200  # more than any default quota


@SUITE.case(
    "STORE-060",
    "what is the toolstack's alone",
    source="XSA-115 (IS_DOMAIN_INTRODUCED); xen-core P types",
    expected="EACCES",
    requires=(*GUESTS, "c"),
)
def _privileged(s: StoreScene) -> None:
    guest = s.guest()
    for op, payload in (
        (XS.CONTROL, "check\0"),
        (XS.INTRODUCE, "1\x001\x001\0"),
        (XS.RELEASE, "1\0"),
        (XS.IS_DOMAIN_INTRODUCED, "1\0"),
        (XS.RESUME, "1\0"),
        (XS.SET_TARGET, "1\x000\0"),
    ):
        expect(guest.ask(op, payload), "EACCES", f"{op.name} of a guest")
    expect(s.main.ask(XS.IS_DOMAIN_INTRODUCED, f"{guest.domid}\0"), "T", "it is introduced")


@SUITE.case(
    "STORE-061",
    "events of what a guest may not read do not reach it",
    source="XSA-115",
    expected="the initial event, then silence: also at removal and below /",
    requires=(*GUESTS, "xenstored"),
)
def _unreadable(s: StoreScene) -> None:
    s.main.write(s.at("secret/a"), "v")
    guest = s.guest()
    for path in (s.at("secret/a"), s.root):
        expect(guest.watch(path, "t"), "OK", f"WATCH of {path}")
    guest.heard()
    s.main.write(s.at("secret/a"), "w")
    s.main.write(s.at("secret/new"), "w")
    s.main.rm(s.at("secret"))
    expect(guest.heard(), [], "events")


@SUITE.case(
    "STORE-062",
    "a new domain does not inherit what was granted to an old one of its number",
    source="XSA-322, XSA-417",
    expected="EACCES",
    requires=(*GUESTS, "newest"),
)
def _inherits(s: StoreScene) -> None:
    first = s.guest()
    s.main.write(s.at("mine"), "v")
    s.main.chmod(s.at("mine"), "n0", f"r{first.domid}")
    expect(first.read(s.at("mine")), "v", "READ of the first domain")
    s.die(first)
    s.main.write(s.at("mine"), "w")
    second = s.guest(first.domid)
    expect(second.read(s.at("mine")), "EACCES", "READ of the next one")
    expect(s.main.perms(s.at("mine")), "n0", "GET_PERMS")


@SUITE.case(
    "STORE-063",
    "a guest gives no node away",
    source="XSA-352",
    expected="EPERM (EACCES of oxenstored), and it is still the owner",
    requires=(*GUESTS, "xenstored"),
)
def _gives_away(s: StoreScene) -> None:
    guest, other = s.guest(), s.guest()
    guest.write("mine", "v")
    done = guest.chmod("mine", f"n{other.domid}")
    expect_one(done, ("EPERM", "EACCES"), "SET_PERMS with another owner")
    expect(guest.perms("mine"), f"n{guest.domid}", "GET_PERMS")
    expect(guest.chmod("mine", f"n{guest.domid}", f"r{other.domid}"), "OK", "SET_PERMS of its own")
    expect(other.read(f"{guest.home}/mine"), "v", "READ of the other")


@SUITE.case(
    "STORE-064",
    "the root is checked as every node is",
    source="XSA-353",
    expected="EACCES for a guest's WRITE, SET_PERMS and new children",
    requires=(*GUESTS, "xenstored"),
)
def _root(s: StoreScene) -> None:
    guest = s.guest()
    expect(guest.write("/", "v"), "EACCES", "WRITE of /")
    expect(guest.chmod("/", f"n{guest.domid}"), "EACCES", "SET_PERMS of /")
    expect_one(guest.rm("/"), ("EACCES", "EINVAL"), "RM of /")
    expect(guest.mkdir("/mine"), "EACCES", "MKDIR in /")
    expect(s.main.perms("/").split()[0][1:], "0", "owner of /")


@SUITE.case(
    "STORE-065",
    "a node that a guest makes is its own; one of dom0's below it keeps the parent's owner",
    source=f"{CORE}, construct_node",
    expected="n<domid> with the parent's list",
    requires=(*GUESTS, "c"),
    hostile=False,
)
def _owner(s: StoreScene) -> None:
    guest = s.guest()
    s.main.mkdir(s.at("open"))
    s.main.chmod(s.at("open"), "b0", "r0")
    guest.write(s.at("open/a/b"), "v")
    own = f"b{guest.domid} r0"
    found = (s.main.perms(s.at("open/a")), s.main.perms(s.at("open/a/b")))
    expect(found, (own, own), "GET_PERMS of what the guest made")
    s.main.write(s.at("open/a/c"), "v")
    expect(s.main.perms(s.at("open/a/c")), own, "GET_PERMS of what dom0 made")


@SUITE.case(
    "STORE-066",
    "below what a guest may not read it cannot tell what is there",
    source=f"{CORE}, errno_from_parents",
    expected="EACCES for missing nodes as for others; ENOENT where it may read",
    requires=(*GUESTS, "c"),
)
def _hidden(s: StoreScene) -> None:
    guest = s.guest()
    s.main.write(s.at("there"), "v")
    for path in ("there", "missing", "missing/deeper"):
        expect(guest.read(s.at(path)), "EACCES", f"READ of {path}")
        expect(guest.write(s.at(path), "v"), "EACCES", f"WRITE of {path}")
    expect(guest.read("missing"), "ENOENT", "READ of a missing node at home")
    expect(s.main.ls(s.root), "there", "what is there")


@SUITE.case(
    "STORE-067",
    "what a dead domain owned goes, with all below",
    source="XSA-419",
    expected="ENOENT for its subtrees, also for others' nodes in them",
    requires=(*GUESTS, "xenstored"),
)
def _orphans(s: StoreScene) -> None:
    guest = s.guest()
    s.main.mkdir(s.at("open"))
    s.main.chmod(s.at("open"), "b0")
    guest.write(s.at("open/mine/deep"), "v")
    s.main.write(s.at("open/mine/theirs"), "v")
    s.main.chmod(s.at("open/mine/theirs"), "n0")
    if s.main.perms(s.at("open/mine")).split()[0] != f"b{guest.domid}":
        s.main.chmod(s.at("open/mine"), f"b{guest.domid}")  # oxenstored: the parent's owner
    s.die(guest)
    expect(s.main.ls(s.at("open")), "", "children of the open directory")
    expect(s.main.read(s.at("open/mine/theirs")), "ENOENT", "READ below a dead domain's node")


@SUITE.case(
    "STORE-068",
    "a creation that fails leaves nothing behind",
    source="XSA-414, XSA-415",
    expected="ENOSPC, no parent was made; in a transaction its end fails too",
    requires=(*GUESTS, "c"),
)
def _undone(s: StoreScene) -> None:
    guest = s.guest()
    value = "v" * 2040  # over node-size with any header
    expect(guest.write("a/b/c", value), "ENOSPC", "WRITE of a value that is too long")
    expect(guest.ls(guest.home), "", "children of the home")
    tx = guest.start()
    expect(guest.write("a/b/c", value, tx), "ENOSPC", "WRITE inside")
    expect(guest.end(tx), "ENOMEM", "TRANSACTION_END")
    expect(s.main.ls(guest.home), "", "children of the home after that")
    expect(guest.write("a/b/c", "v"), "OK", "WRITE of one that fits")


@SUITE.case(
    "STORE-069",
    "creations and removals in transactions keep the count of nodes",
    source="XSA-421",
    expected="after any number of them the quota has as much room as before",
    requires=(*GUESTS, "c"),
)
def _accounts(s: StoreScene) -> None:
    guest = s.guest()
    for how in ("T", "F") * 8:
        guest.write("a/b", "v")
        tx = guest.start()
        for number in range(90):
            guest.write(f"a/{number}", "v", tx)
        expect(guest.rm("a", tx), "OK", "RM inside")
        guest.write("a", "v", tx)
        guest.rm("a", tx)
        expect(guest.end(tx, how), "OK", f"TRANSACTION_END {how}")
    for number in range(900):
        expect(guest.write(f"d{number % 9}/{number}", ""), "OK", f"WRITE of node {number}")


@SUITE.case(
    "STORE-070",
    "what a domain used up does not burden the next of its number",
    source="XSA-483",
    expected="nodes, watches and transactions are counted from nothing",
    requires=(*GUESTS, "xenstored"),
)
def _reused(s: StoreScene) -> None:
    for _ in range(3):
        guest = s.guest(1)
        for number in range(600):
            expect(guest.write(f"d{number % 9}/{number}", ""), "OK", f"WRITE of node {number}")
        for number in range(90):
            expect(guest.watch("w", str(number)), "OK", f"WATCH {number}")
        for _ in range(8):
            guest.start()
        s.die(guest)


@SUITE.case(
    "STORE-071",
    "quotas: nodes, watches and transactions of one guest end, and nobody else notices",
    source="XSA-326; docs/misc/xenstored-migration.md; xenstored --help, quotas",
    expected="ENOSPC (E2BIG, EQUOTA of others) at last; another guest goes on",
    requires=(*GUESTS, "xenstored"),
)
def _quotas(s: StoreScene) -> None:
    guest, other = s.guest(), s.guest()
    requests: dict[str, Callable[[int], str]] = {
        "nodes": lambda number: guest.write(f"d{number % 9}/{number}", ""),
        "watches": lambda number: guest.watch("w", str(number)),
        "transactions": lambda _: guest.ask(XS.TRANSACTION_START, "\0"),
    }
    for name, request in requests.items():
        for number in range(QUOTA_SEARCH):
            if request(number) in QUOTA_ERRORS:
                break
        else:
            raise Wrong(f"a guest may have {QUOTA_SEARCH} {name}")
    expect(guest.read("d0/0"), "", "READ of a guest at its quotas")
    expect(other.write("n", "v"), "OK", "WRITE of another")
    expect(other.watch("w", "t"), "OK", "WATCH of another")
    expect(other.end(other.start()), "OK", "a transaction of another")


@SUITE.case(
    "STORE-072",
    "paths of a guest have a limit, whatever the request",
    source="XSA-323; docs/misc/xenstore-paths.pandoc, XENSTORE_ABS_PATH_MAX",
    expected="EINVAL from READ, WRITE, MKDIR and WATCH alike",
    requires=(*GUESTS, "c"),
)
def _path_length(s: StoreScene) -> None:
    guest = s.guest()
    for op, rest in ((XS.READ, ""), (XS.WRITE, "v"), (XS.MKDIR, ""), (XS.WATCH, "t\0")):
        path = "/" + "a" * 2048
        expect(guest.ask(op, f"{path}\0{rest}"), "EINVAL", f"{op.name} of 2,049 bytes")
    expect(guest.ls(guest.home), "", "children of the home")


@SUITE.case(
    "STORE-073",
    "domains come and go, and those who may hear of it do",
    source=f"{DOMAIN}, domain_conn_reset, domain_cleanup",
    expected="@introduceDomain once, @releaseDomain at shutdown and at death; again: nothing",
    requires=(*GUESTS, "c"),
    hostile=False,
)
def _comings(s: StoreScene) -> None:
    s.main.watch("@introduceDomain", "i")
    s.main.watch("@releaseDomain", "r")
    s.main.heard()
    guest = s.guest()
    expect(s.main.heard(), ["@introduceDomain i"], "events of INTRODUCE")
    expect(s.introduce(guest), "OK", "INTRODUCE again")
    expect(s.main.heard(), [], "events of a second INTRODUCE")
    s.domains.shutdown(guest.domid)
    expect(s.main.heard(), ["@releaseDomain r"], "events of its shutdown")
    s.die(guest)
    expect(s.main.heard(), ["@releaseDomain r"], "events of its death")
    answer = s.main.ask(XS.IS_DOMAIN_INTRODUCED, f"{guest.domid}\0")
    expect(answer, "F", "IS_DOMAIN_INTRODUCED")


@SUITE.case(
    "STORE-074",
    "a second INTRODUCE starts the ring anew",
    source=f"{DOMAIN}, domain_conn_reset",
    expected="watches and transactions are gone, indices 0, requests served",
    requires=(*GUESTS, "c"),
)
def _again(s: StoreScene) -> None:
    guest = s.guest()
    guest.watch("w", "t")
    tx = guest.start()
    guest.heard()
    expect(s.introduce(guest), "OK", "INTRODUCE again")
    guest.settle()
    expect([guest.word(offset) for offset in (2048, 2052, 2056, 2060)], [0] * 4, "the indices")
    expect(guest.write("w", "v"), "OK", "WRITE")
    expect(guest.heard(), [], "events of the watch of before")
    expect(guest.end(tx), "ENOENT", "TRANSACTION_END of the transaction of before")


@SUITE.case(
    "STORE-075",
    "a device model has its target's rights",
    source=f"{DOMAIN}, do_set_target; tools/xenstored/core.c, perm_for_conn",
    expected="READ and WRITE of the target's nodes; EACCES before",
    requires=(*GUESTS, "c"),
    hostile=False,
)
def _target(s: StoreScene) -> None:
    model, target = s.guest(), s.guest()
    target.write("mine", "v")
    path = f"{target.home}/mine"
    expect(model.read(path), "EACCES", "READ before SET_TARGET")
    done = s.main.ask(XS.SET_TARGET, f"{model.domid}\0{target.domid}\0")
    expect(done, "OK", "SET_TARGET")
    expect((model.read(path), model.write(path, "w")), ("v", "OK"), "READ and WRITE")
    expect(target.read(s.root), "EACCES", "READ of the target elsewhere")


@SUITE.case(
    "STORE-076",
    "special nodes are not a guest's",
    source="XSA-115; docs/misc/xenstore.txt, @introduceDomain",
    expected="no event of another domain's introduction",
    requires=(*GUESTS, "c"),
)
def _special(s: StoreScene) -> None:
    guest = s.guest()
    expect_one(guest.watch("@introduceDomain", "i"), ("OK", "EACCES"), "WATCH")
    guest.heard()
    s.guest()
    expect(guest.heard(), [], "events of a domain that was introduced")
    for op, rest in ((XS.READ, ""), (XS.WRITE, "v"), (XS.RM, "")):
        expect(guest.ask(op, f"@introduceDomain\0{rest}"), "EINVAL", f"{op.name} of a special node")
