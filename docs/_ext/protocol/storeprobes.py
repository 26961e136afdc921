"""What xenstored answers, whom its watches tell and which transactions fail: found out by asking.

Each row has a fresh store: `c` is the xenstored of Xen's tree in C, `ox` oxenstored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from xenpv.abi.xs import XS
from xenpv.store.profile import OX, C, Profile
from xenpv.store.quota import NAMES, Limits
from xenpv.store.server import HANDLERS
from xenpv.testing.cases.storeclient import Client
from xenpv.testing.cases.storescene import OurStore, StoreScene

from .table import Table
from .texts import of

PROFILES: Final = (C, OX)
Run = Callable[[StoreScene], str]


def _run(profile: Profile, run: Run) -> str:
    scene = StoreScene(OurStore(1, profile), 1)
    try:
        return run(scene) or "empty"
    finally:
        scene.close()


def _main(op: XS, payload: str, tx: int = 0) -> Run:
    """A request of the privileged domain; R is the row's own directory."""
    return lambda s: s.main.ask(op, payload.replace("R/", s.root + "/"), tx)


def _guest(op: XS, payload: str) -> Run:
    """A request of a guest, relative to its home, which it owns."""
    return lambda s: s.guest().ask(op, payload)


def _with_private(op: XS, payload: str) -> Run:
    """The same where R/mine is dom0's alone."""

    def run(s: StoreScene) -> str:
        s.main.write(s.at("mine"), "x")
        s.main.chmod(s.at("mine"), "n0")
        return s.guest().ask(op, payload.replace("R/", s.root + "/"))

    return run


def _give_away(s: StoreScene) -> str:
    guest = s.guest()
    guest.write("mine", "x")
    return guest.ask(XS.SET_PERMS, "mine\0n0\0")


def _watch_twice(s: StoreScene) -> str:
    s.main.ask(XS.WATCH, s.at("a") + "\0token\0")
    return s.main.ask(XS.WATCH, s.at("a") + "\0token\0")


# op, situation, request
ERRORS: Final[tuple[tuple[XS, str, Run], ...]] = (
    (XS.READ, "a node that is not there", _main(XS.READ, "R/none\0")),
    (XS.READ, "without the NUL at its end", _main(XS.READ, "R/none")),
    (XS.READ, "two strings", _main(XS.READ, "R/a\0b\0")),
    (XS.READ, "a path with a blank", _main(XS.READ, "R/a b\0")),
    (XS.READ, "a path that ends with /", _main(XS.READ, "R/\0")),
    (XS.READ, "a transaction that is not open", _main(XS.READ, "R/a\0", 77)),
    (XS.READ, "by a guest, what dom0 alone may read", _with_private(XS.READ, "R/mine\0")),
    (XS.READ, "by a guest, what is missing below that", _with_private(XS.READ, "R/mine/none\0")),
    (XS.DIRECTORY, "a node without children",
     lambda s: s.main.write(s.at("leaf"), "x") and s.main.ask(XS.DIRECTORY, s.at("leaf") + "\0")),
    (XS.WRITE, "two levels that are not there", _main(XS.WRITE, "R/a/b\0x")),
    (XS.WRITE, "by a guest, what dom0 alone may write", _with_private(XS.WRITE, "R/mine\0x")),
    (XS.MKDIR, "a node that is there",
     lambda s: s.main.write(s.at("a"), "x") and s.main.mkdir(s.at("a"))),
    (XS.RM, "a node that is not there, whose parent is", _main(XS.RM, "R/none\0")),
    (XS.RM, "a node whose parent is not there", _main(XS.RM, "R/none/below\0")),
    (XS.RM, "the root", _main(XS.RM, "/\0")),
    (XS.SET_PERMS, "no permission", _main(XS.SET_PERMS, "R/a\0")),
    (XS.SET_PERMS, "a letter that is none",
     lambda s: s.main.write(s.at("a"), "x") and s.main.ask(XS.SET_PERMS, s.at("a") + "\0x0\0")),
    (XS.SET_PERMS, "by a guest, to give its node away",
     _give_away),
    (XS.WATCH, "the same path and token twice", _watch_twice),
    (XS.WATCH, "by a guest, one string", _guest(XS.WATCH, "a\0")),
    (XS.UNWATCH, "what is not watched", _main(XS.UNWATCH, "R/a\0token\0")),
    (XS.TRANSACTION_START, "inside a transaction",
     lambda s: s.main.ask(XS.TRANSACTION_START, "\0", int(s.main.ask(XS.TRANSACTION_START, "\0")))),
    (XS.TRANSACTION_END, "without one", _main(XS.TRANSACTION_END, "T\0")),
    (XS.TRANSACTION_END, "neither T nor F",
     lambda s: s.main.ask(XS.TRANSACTION_END, "X\0", int(s.main.ask(XS.TRANSACTION_START, "\0")))),
    (XS.INTRODUCE, "by a guest", _guest(XS.INTRODUCE, "5\x001\x001\0")),
    (XS.RELEASE, "a domain that is not introduced", _main(XS.RELEASE, "99\0")),
    (XS.GET_DOMAIN_PATH, "of any number", _main(XS.GET_DOMAIN_PATH, "42\0")),
    (XS.GET_DOMAIN_PATH, "of what is no number", _main(XS.GET_DOMAIN_PATH, "x\0")),
    (XS.IS_DOMAIN_INTRODUCED, "by a guest", _guest(XS.IS_DOMAIN_INTRODUCED, "0\0")),
    (XS.RESET_WATCHES, "by a guest", _guest(XS.RESET_WATCHES, "\0")),
    (XS.DIRECTORY_PART, "an offset beyond the end",
     lambda s: s.main.ask(XS.DIRECTORY_PART, f"{s.root}\0999\0").partition("\0")[2] or "no names"),
    (XS.CONTROL, "by a guest", _guest(XS.CONTROL, "help\0")),
)  # fmt: skip


@cache
def errors() -> Table:
    names = tuple(profile.name for profile in PROFILES)
    rows = [
        (f"`XS_{op.name}`", text, *(_shown(_run(profile, run)) for profile in PROFILES))
        for op, text, run in ERRORS
    ]
    return Table(("request", "situation", *names), tuple(rows))


def _shown(reply: str) -> str:
    return reply.replace("\0", "|")


def ops() -> Table:
    """Types, by the table that dispatches them; payloads are words of text/storeops.toml."""
    rows = []
    for op in sorted(XS):
        words = of("storeop", op.name)
        entry = HANDLERS.get(int(op))
        who = "" if entry is None else "privileged" if entry[1] else "anybody"
        rows.append((
            str(int(op)), f"`XS_{op.name}`", who, words["request"], words["reply"],
        ))  # fmt: skip
    return Table(("type", "name", "for", "payload of the request", "of the reply"), tuple(rows))


# transactions: what one does, what another does meanwhile


def _commit(
    inside: Callable[[Client, str, int], object], outside: Callable[[Client, str], object]
) -> Run:
    """a and d/y are there; `inside` a transaction, then `outside` of it, then its end."""

    def run(s: StoreScene) -> str:
        for name in ("a", "d/y", "b"):
            s.main.write(s.at(name), "old")
        tx = int(s.main.ask(XS.TRANSACTION_START, "\0"))
        inside(s.main, s.root, tx)
        outside(s.client(), s.root)
        return s.main.ask(XS.TRANSACTION_END, "T\0", tx)

    return run


CONFLICTS: Final[tuple[tuple[str, str, Run], ...]] = (
    ("reads a, writes nothing", "writes a",
     _commit(lambda c, r, t: c.read(f"{r}/a", t), lambda c, r: c.write(f"{r}/a", "new"))),
    ("reads a, writes b", "writes a",
     _commit(lambda c, r, t: (c.read(f"{r}/a", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.write(f"{r}/a", "new"))),
    ("reads permissions of a, writes b", "changes them",
     _commit(lambda c, r, t: (c.perms(f"{r}/a", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.chmod(f"{r}/a", "n0", "r1"))),
    ("writes a", "writes a",
     _commit(lambda c, r, t: c.write(f"{r}/a", "mine", t), lambda c, r: c.write(f"{r}/a", "new"))),
    ("lists d, writes b", "creates d/z",
     _commit(lambda c, r, t: (c.ls(f"{r}/d", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.write(f"{r}/d/z", "new"))),
    ("lists d, writes b", "writes d/y",
     _commit(lambda c, r, t: (c.ls(f"{r}/d", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.write(f"{r}/d/y", "new"))),
    ("creates d/x", "creates d/z",
     _commit(lambda c, r, t: c.write(f"{r}/d/x", "mine", t), lambda c, r: c.write(f"{r}/d/z", "new"))),
    ("writes d/y", "creates d/z",
     _commit(lambda c, r, t: c.write(f"{r}/d/y", "mine", t), lambda c, r: c.write(f"{r}/d/z", "new"))),
    ("reads d/q, which is missing, writes b", "creates d/q",
     _commit(lambda c, r, t: (c.read(f"{r}/d/q", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.write(f"{r}/d/q", "new"))),
    ("removes d", "writes d/y",
     _commit(lambda c, r, t: c.rm(f"{r}/d", t), lambda c, r: c.write(f"{r}/d/y", "new"))),
    ("reads a, writes b", "writes something else",
     _commit(lambda c, r, t: (c.read(f"{r}/a", t), c.write(f"{r}/b", "x", t)),
             lambda c, r: c.write(f"{r}/other", "new"))),
)  # fmt: skip


@cache
def conflicts() -> Table:
    names = tuple(profile.name for profile in PROFILES)
    rows = [
        (inside, outside, *(_run(profile, run) for profile in PROFILES))
        for inside, outside, run in CONFLICTS
    ]
    return Table(("in the transaction", "somebody else meanwhile", *names), tuple(rows))


# watches


def _events(path: str, then: Callable[[Client, str], object]) -> Run:
    """Events of a watch of R/path after the first, which comes at once."""

    def run(s: StoreScene) -> str:
        for name in ("d/y/z", "d/x"):
            s.main.write(s.at(name), "old")
        s.main.ask(XS.WATCH, s.at(path) + "\0token\0")
        first = s.main.heard()
        then(s.client(), s.root)
        events = [one.split()[0] for one in s.main.heard()]
        assert len(first) == 1, first
        return ", ".join(f"`{one.removeprefix(s.root + '/')}`" for one in events) or "none"

    return run


EVENTS: Final[tuple[tuple[str, str, Run], ...]] = (
    ("d", "WRITE of d/x", _events("d", lambda c, r: c.write(f"{r}/d/x", "new"))),
    ("d/x", "the same value again", _events("d/x", lambda c, r: c.write(f"{r}/d/x", "old"))),
    ("d/x", "WRITE of d/x2", _events("d/x", lambda c, r: c.write(f"{r}/d/x2", "new"))),
    ("d", "WRITE of d/p/q, two levels that are new",
     _events("d", lambda c, r: c.write(f"{r}/d/p/q", "new"))),
    ("d/y/z", "RM of d", _events("d/y/z", lambda c, r: c.rm(f"{r}/d"))),
    ("d", "RM of d/y, which has a child", _events("d", lambda c, r: c.rm(f"{r}/d/y"))),
    ("d/none", "RM of d", _events("d/none", lambda c, r: c.rm(f"{r}/d"))),
    ("d", "MKDIR of what is there", _events("d", lambda c, r: c.mkdir(f"{r}/d/y"))),
    ("d", "SET_PERMS of d/x", _events("d", lambda c, r: c.chmod(f"{r}/d/x", "n0"))),
)  # fmt: skip


@cache
def watches() -> Table:
    names = tuple(profile.name for profile in PROFILES)
    rows = [
        (f"`{path}`", text, *(_run(profile, run) for profile in PROFILES))
        for path, text, run in EVENTS
    ]
    return Table(("watched", "what happens", *(f"events of {one}" for one in names)), tuple(rows))


# permissions


def _may(*perms: str) -> Callable[[Profile], tuple[str, str]]:
    """(READ, WRITE) by domain 1 of a node with these permissions; domain 2 is another guest."""

    def run(profile: Profile) -> tuple[str, str]:
        def ask(op: XS, payload: str) -> Run:
            def one(s: StoreScene) -> str:
                guests = [s.guest(), s.guest()]
                named = [text.format(*(guest.domid for guest in guests)) for text in perms]
                s.main.write(s.at("node"), "x")
                assert s.main.chmod(s.at("node"), *named) == "OK"
                return guests[0].ask(op, s.at("node") + payload)

            return one

        answers = _run(profile, ask(XS.READ, "\0")), _run(profile, ask(XS.WRITE, "\0y"))
        read, write = ("no" if one.startswith("E") and one.isupper() else "yes" for one in answers)
        return read, write

    return run


PERMISSIONS: Final = (
    ("n0", "dom0's, for nobody else", _may("n0")),
    ("r0", "everybody reads", _may("r0")),
    ("w0", "everybody writes, and does not read", _may("w0")),
    ("b0", "both", _may("b0")),
    ("n0 r1", "domain 1 reads", _may("n0", "r{0}")),
    ("n0 r2", "domain 2 reads", _may("n0", "r{1}")),
    ("b0 n1", "everybody but domain 1", _may("b0", "n{0}")),
    ("n1", "domain 1 owns it", _may("n{0}")),
    ("n2 b1", "domain 2 owns it, domain 1 reads and writes", _may("n{1}", "b{0}")),
)


@cache
def permissions() -> Table:
    rows = [(f"`{text}`", meaning, *may(C)) for text, meaning, may in PERMISSIONS]
    return Table(("permissions", "meaning", "domain 1 reads", "domain 1 writes"), tuple(rows))


def quotas() -> Table:
    """By name on the wire; the first number that is refused. `soft-memory` refuses nothing."""
    limits = {profile.name: Limits.of(profile) for profile in PROFILES}
    rows = [
        (f"`{name.decode()}`",
         *(str(getattr(limits[profile.name], attribute) or "no limit") for profile in PROFILES))
        for name, attribute in NAMES.items() if attribute != "soft_memory"
    ]  # fmt: skip
    return Table(("quota", *(f"first refused by {one.name}" for one in PROFILES)), tuple(rows))
