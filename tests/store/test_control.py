"""CONTROL, its formats as the specification has them (xen-core 1.8)."""

from __future__ import annotations

import re

import pytest

from tests.store.client import Store, WireClient, answer
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.control import inconsistencies


def control(store: Store, *words: str) -> str:
    payload = b"".join(word.encode() + b"\0" for word in words)
    return store.dom0.call(XS.CONTROL, payload).decode()


def watch(guest: WireClient, name: bytes) -> None:
    guest.send(XS.WATCH, name + b"\0t\0")
    assert [op for op, *_ in guest.messages()] == [XS.WATCH, XS.WATCH_EVENT]


@pytest.mark.parametrize(
    "words",
    [
        (), ("",), ("nonsense",), ("live-update",), ("check", "x"), ("log", "loud"), ("log", "+x"),
        ("log", "on", "off"), ("log", "+"), ("logfile",), ("logfile", "a", "b"), ("logfile", ""),
        ("memreport",), ("memreport", "/report"), ("memreport", "a", "b"), ("print",),
        ("print", "a", "b"), ("quota", "set"), ("quota", "set", "nodes"), ("quota", "set", "nodes", "0"),
        ("quota", "set", "nodes", "-1"), ("quota", "set", "bogus", "5"), ("quota", "set", "nodes", "1", "2"),
        ("quota", "set", "soft-memory", "5"), ("quota", "1", "2"), ("quota", "max", "-x"),
        ("quota", "max", "-r", "-r"), ("quota-soft", "get"), ("quota-soft", "set", "nodes", "5"),
        ("help", "x"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_is_einval(store: Store, words: tuple[str, ...]) -> None:
    payload = b"".join(word.encode() + b"\0" for word in words)
    assert answer(store.dom0, XS.CONTROL, payload) == "EINVAL"


def test_a_guest_has_no_say(store: Store) -> None:
    assert answer(store.guest(1), XS.CONTROL, b"help\0") == "EACCES"


def test_help_names_every_command(store: Store) -> None:
    lines = control(store, "help").rstrip("\0").splitlines()
    assert [line.split()[0] for line in lines] == [
        "check", "log", "logfile", "memreport", "print", "quota", "quota-soft", "help",
    ]  # fmt: skip
    assert lines[1] == f"{'log':<15} [on|off|+<switch>|-<switch>]"


def test_log_switches_are_listed_and_turned(store: Store) -> None:
    assert control(store, "log") == (
        "Log switch settings:\nobj     : on\nio      : on\nwrl     : on\n"
        "acc     : off\ntdb     : off\n\0"
    )
    assert control(store, "log", "+tdb") == "OK\0"
    assert control(store, "log", "-io") == "OK\0"
    assert "io      : off\n" in control(store, "log")
    assert "tdb     : on\n" in control(store, "log")


def test_quotas_are_listed_in_xenstoreds_order(store: Store) -> None:
    lines = control(store, "quota").rstrip("\0").splitlines()
    assert lines[0] == "Quota settings:"
    assert [re.match(r"(\S+) *: +(\d+) \S", line).groups() for line in lines[1:]] == [  # type: ignore[union-attr]
        ("nodes", "1000"), ("watches", "128"), ("outstanding", "20"), ("memory", "2621440"),
        ("transactions", "10"), ("transaction-nodes", "1024"), ("node-permissions", "5"),
        ("path-max", "2048"), ("node-size", "2048"),
    ]  # fmt: skip
    assert lines[1].startswith(f"{'nodes':<17}: {1000:>8} ")
    assert control(store, "quota-soft").splitlines()[1].startswith(f"{'memory':<17}:  2097152 ")


def test_a_quota_set_is_for_domains_to_come(store: Store) -> None:
    guest = store.guest(1)
    assert control(store, "quota", "set", "watches", "2") == "OK\0"
    late = store.guest(3)
    watch(late, b"a")
    assert answer(late, XS.WATCH, b"b\0t\0") == "ENOSPC"
    for name in (b"a", b"b", b"c"):
        watch(guest, name)


def test_what_a_domain_holds_and_held(store: Store) -> None:
    guest = store.guest(1)
    tx = int(guest.call(XS.TRANSACTION_START, b"\0")[:-1])
    watch(guest, b"a")
    guest.call(XS.TRANSACTION_END, b"F\0", tx)
    lines = control(store, "quota", "1").rstrip("\0").splitlines()
    assert lines[0] == "Domain 1:"
    assert lines[2] == f"{'watches':<17}: {1:>8} (max {1:>8})"
    assert lines[5] == f"{'transactions':<17}: {0:>8} (max {1:>8})"
    assert answer(store.dom0, XS.CONTROL, b"quota\x0099\0") == "ENOENT"


def test_the_highest_values_outlive_their_domain(store: Store) -> None:
    guest = store.guest(1)
    for name in (b"a", b"b"):
        watch(guest, name)
    store.dom0.call(XS.RELEASE, b"1\0")
    assert "watches          :        2\n" in control(store, "quota", "max")
    assert "watches          :        0\n" in control(store, "quota", "max", "-r")


class Files:
    def __init__(self) -> None:
        self.written: dict[str, str] = {}

    def append(self, name: str, text: str) -> None:
        if name == "/full":
            raise OSError(28, "No space left on device")
        self.written[name] = self.written.get(name, "") + text


def test_reports_go_where_the_daemon_may_write(store: Store) -> None:
    files = store.server.administration.files = Files()
    assert control(store, "memreport", "/report") == "OK\0"
    assert files.written["/report"].splitlines()[0].startswith("nodes")
    assert control(store, "logfile", "/log") == "OK\0"
    assert control(store, "print", "hello") == "OK\0"
    assert control(store, "memreport") == "OK\0"
    assert files.written["/log"].startswith("control: hello\nnodes")
    assert answer(store.dom0, XS.CONTROL, b"memreport\0/full\0") == "EINVAL"


def test_check_finds_what_is_wrong(store: Store) -> None:
    assert control(store, "check") == "OK\0"
    assert inconsistencies(store.server) == []
    files = store.server.administration.files = Files()
    control(store, "logfile", "/log")
    store.write(b"/a/b", b"1")
    del store.server.nodes[b"/a/b"]
    assert control(store, "check") == "OK\0"
    assert "check: /a lists b, which is not there\n" in files.written["/log"]


def test_refusals_name_what_was_asked(store: Store) -> None:
    with pytest.raises(StoreError, match=r"command \['nonsense'\]"):
        store.server.connect_local("x").call(XS.CONTROL, b"nonsense\0")
