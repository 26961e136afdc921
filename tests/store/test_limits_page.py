"""The limits that docs/reference/store.md names are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.store import listener, storefile, unixsocket
from xenpv.store.profile import OX, PROFILES
from xenpv.store.quota import NAMES, Limits
from xenpv.store.wire import PAYLOAD_MAX

PAGE = Path(__file__).parents[2] / "docs/reference/store.md"
OUTSTANDING = "no reply until some were read"


def rows(first: str) -> Iterator[list[str]]:
    """The cells of the table whose head begins with `first`."""
    text = PAGE.read_text()
    table = text[text.index(f"| {first} |") :].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("| ").split("|")]


QUOTAS = {cells[0].split("`")[1]: cells[1:] for cells in rows("quota")}


def test_every_quota_has_a_row_with_what_fits_under_each_profile() -> None:
    assert list(QUOTAS) == [name.decode() for name in NAMES]
    for name, (*numbers, _) in QUOTAS.items():
        for profile, number in zip(PROFILES.values(), numbers, strict=True):
            limit = getattr(Limits.of(profile), name.replace("-", "_"))
            # Requests are read until so many wait; of all else the limit itself is refused.
            most = limit if name == "outstanding" else limit - 1
            assert number == (str(most) if limit else "none"), (name, profile.name)


HOME = b"/local/domain/1"
BREACHES = {
    "nodes": (XS.WRITE, b"data/x\0v"),
    "watches": (XS.WATCH, b"data\0t\0"),
    "memory": (XS.WRITE, b"data\0" + b"v" * 100),
    "soft-memory": (XS.WRITE, b"data\0v"),
    "transactions": (XS.TRANSACTION_START, b"\0"),
    "transaction-nodes": (XS.READ, b"data\0"),
    "node-permissions": (XS.SET_PERMS, b"data\0n1\0r0\0"),
    "path-max": (XS.READ, b"data\0"),
    "node-size": (XS.WRITE, b"data\0v"),
}


@pytest.mark.parametrize("name", [name for name in QUOTAS if name != "outstanding"])
@pytest.mark.parametrize("profile", PROFILES)
def test_more_is_refused_as_the_row_says(name: str, profile: str) -> None:
    store = Store(PROFILES[profile])
    guest = store.guest(1)
    store.write(HOME + b"/data")
    store.set_perms(HOME + b"/data", b"n1")
    domain = store.server.known[1]
    tx_id = start(guest) if name == "transaction-nodes" else 0
    setattr(domain.limits, name.replace("-", "_"), domain.memory + 30 if name == "memory" else 1)
    said = QUOTAS[name][-1]
    own = re.search(rf"\b{profile} ([A-Z0-9]+)", said)
    wanted = own[1] if own is not None else said.split()[0].rstrip(",;")
    op, payload = BREACHES[name]
    assert answer(guest, op, payload, tx_id) == (b"OK\0" if wanted == "nothing" else wanted)
    if tx_id:
        assert "at its end ENOMEM" in said
        assert end(guest, tx_id) == "ENOMEM"
    if name == "memory":
        assert "ENOMEM for watches" in said
        assert answer(guest, XS.WATCH, b"data\0" + b"t" * 100 + b"\0") == "ENOMEM"


def test_a_request_beyond_the_outstanding_has_no_reply_until_some_were_read() -> None:
    *numbers, said = QUOTAS["outstanding"]
    assert said == OUTSTANDING
    for profile, number in zip(PROFILES.values(), numbers, strict=True):
        store = Store(profile)
        guest = store.guest(1)
        for _ in range(int(number) + 1):
            guest.send(XS.READ, HOME + b"\0")
        assert guest.connection.backlog == int(number)
        assert len(guest.messages()) == int(number) + 1


def test_the_limits_for_everybody() -> None:
    assert {cells[0]: int(cells[1]) for cells in rows("what | most")} == {
        "bytes of a request, without its header": PAYLOAD_MAX,
        "bytes of a reply": PAYLOAD_MAX,
        "bytes of a value under `ox`": OX.value_max,
        "bytes of a path under `ox`": OX.path_max,
        "clients of a socket": listener.CLIENTS_MAX,
        "messages that a client of the socket has not read": listener.UNREAD_MESSAGES_PAUSE,
        "the same, with events that others cause": listener.UNREAD_MESSAGES_MAX,
        "bytes of a socket's path": unixsocket.PATH_BYTES_MAX,
        "bytes of a store file": storefile.FILE_BYTES_MAX,
    }
