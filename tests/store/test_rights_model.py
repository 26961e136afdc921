"""Answers to requests that are wrong, and rights against a model of them."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.client import Store, answer, message
from tests.store.rawguest import add_guest
from tests.world import make
from xenpv.abi.xs import XS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (message(20, b"x\0"), "ENOSYS"),
        (message(27, b"x\0"), "ENOSYS"),
        (message(XS.WATCH_EVENT, b"x\0"), "ENOSYS"),
        (message(XS.ERROR, b"x\0"), "ENOSYS"),
        (message(0xFFFFFFFF, b""), "ENOSYS"),
        (message(XS.RELEASE, b"0\0"), "EACCES"),
        (message(XS.READ, b"data\0", tx_id=9), "ENOENT"),
        (message(XS.READ, b"data"), "EINVAL"),
        (message(XS.READ, b""), "EINVAL"),
        (message(XS.READ, b"data\0data\0"), "EINVAL"),
    ],
)
def test_answers_to_requests_that_are_wrong(data: bytes, expected: str) -> None:
    world = make()
    with closing(world.hypervisor):
        guest = add_guest(world)
        for at in range(len(data)):
            guest.put(data[at : at + 1])
            guest.notify()
        ((op, _, _, payload),) = guest.messages()
        assert (op, payload) == (XS.ERROR, expected.encode() + b"\0")
        assert guest.call(XS.READ, b"data\0") == b""


# A model of who may do what: an owner, a default, a list; plain sets of numbers.

LETTERS = {"n": "", "r": "r", "w": "w", "b": "rw"}
ENTRY = st.tuples(st.sampled_from("nrwb"), st.integers(1, 6))
CHANGE = st.one_of(
    st.tuples(st.just("perms"), st.lists(ENTRY, min_size=1, max_size=4)),
    st.tuples(st.just("target"), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    st.tuples(st.just("reuse"), st.integers(1, 4)),
    st.tuples(st.just("appear"), st.integers(5, 6)),
)


class Model:
    """Domains are (domid, life); a list names lives as they were when it was set."""

    def __init__(self) -> None:
        self.life = dict.fromkeys(range(1, 5), 0)
        self.target: dict[tuple[int, int], tuple[int, int]] = {}
        self.entries: list[tuple[str, tuple[int, int] | None]] = [("n", (0, 0))]

    def one(self, domid: int) -> tuple[int, int] | None:
        return (domid, self.life[domid]) if domid in self.life else None

    def may(self, domid: int, right: str) -> bool:
        me = self.one(domid)
        assert me is not None
        mine = (me, self.target.get(me))
        letter, owner = self.entries[0]
        if owner in mine:
            return True
        for entry, who in self.entries[1:]:
            if who is not None and who in mine:
                return right in LETTERS[entry]
        return right in LETTERS[letter]


@given(changes=st.lists(CHANGE, max_size=15))
@settings(max_examples=150)
def test_rights_are_those_of_a_model(changes: list[tuple[str, object]]) -> None:
    store, model = Store(), Model()
    store.platform.domids.clear()
    store.platform.domids.update({1, 2, 3, 4})
    store.write(b"/x", b"v")
    guests = {domid: store.guest(domid) for domid in range(1, 5)}
    for kind, what in changes:
        if kind == "perms":
            entries = what
            owner = model.one(entries[0][1])  # type: ignore[index]
            texts = [f"{letter}{domid}".encode() for letter, domid in entries]  # type: ignore[attr-defined]
            payload = b"/x\0" + b"".join(text + b"\0" for text in texts)
            expected = "ENOENT" if owner is None else b"OK\0"
            assert answer(store.dom0, XS.SET_PERMS, payload) == expected
            if owner is not None:
                model.entries = [(letter, model.one(domid)) for letter, domid in entries]  # type: ignore[attr-defined]
        elif kind == "target":
            holder, target = what  # type: ignore[misc]
            if holder != target and not model.target:
                store.dom0.call(XS.SET_TARGET, b"%d\0%d\0" % (holder, target))
                model.target[model.one(holder)] = model.one(target)  # type: ignore[index,assignment]
        elif kind == "reuse":
            domid = what
            me = model.one(domid)  # type: ignore[arg-type]
            if model.entries[0][1] == me or any(me in pair for pair in model.target.items()):
                continue  # the node would go with its owner, and a target lingers: elsewhere
            store.server.domain_died(domid)  # type: ignore[arg-type]
            store.platform.ids[domid] += 1  # type: ignore[index]
            model.life[domid] += 1  # type: ignore[index]
            guests[domid] = store.guest(domid)  # type: ignore[index,arg-type]
        elif what not in model.life:
            store.platform.domids.add(what)  # type: ignore[arg-type]
            store.platform.ids[what] = 1  # type: ignore[index]
            model.life[what] = 1  # type: ignore[index]
            guests[what] = store.guest(what)  # type: ignore[index,arg-type]
        for domid, guest in guests.items():
            read = answer(guest, XS.READ, b"/x\0")
            assert (read == b"v") == model.may(domid, "r"), (kind, what, domid)
            wrote = answer(guest, XS.WRITE, b"/x\0v")
            assert (wrote == b"OK\0") == model.may(domid, "w"), (kind, what, domid)
