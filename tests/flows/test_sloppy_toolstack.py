"""Guests and backends under a toolstack that keeps no order, forgets keys, and deletes too early.

Nothing of it may raise out of a handler: the platform's own run would. What comes in the end
works, and what went leaves nothing.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flows.sloppy import KINDS, PERSONALITIES, Op, Sloppy, connected, device, make, ops
from xenpv import Guest, Platform, ToolstackError
from xenpv.host.device import Device
from xenpv.host.hotplug import Mode
from xenpv.testing.census import Census, leaks, take_census

both = pytest.mark.parametrize("personality", PERSONALITIES)
of_each_kind = pytest.mark.parametrize("kind", KINDS)


def plain(xen: Platform, guest: Guest, made: Device) -> Census:
    """What is held once the device was there, as it should be, and went as it should."""
    properly(xen, guest, made)
    return take_census(xen)


def properly(xen: Platform, guest: Guest, made: Device) -> None:
    """A toolstack that knows its business: in, connected, out."""
    hotplug = xen.toolstack.hotplug
    hotplug.add_all(guest.created, [made], hot=True)
    xen.run()
    assert connected(guest, made)
    hotplug.detach(guest.created, made.kind, made.devid, Mode.SAFE)
    xen.run()
    assert not connected(guest, made)


def settle(xen: Platform) -> None:
    """The drivers' repetitions come after 120 s."""
    xen.run()
    xen.advance(250)


def clean(xen: Platform, sloppy: Sloppy) -> None:
    """All that is left goes, and everybody is given the time to see it."""
    for end in "BFL":
        sloppy.delete(end)
        xen.run()
    sloppy.xs.rm(f"/local/domain/1/error/device/{sloppy.made.kind}/{sloppy.made.devid}")
    settle(xen)


@both
@of_each_kind
@settings(max_examples=40)
@given(data=st.data())
def test_keys_in_any_order_make_a_device(personality: str, kind: str, data: st.DataObject) -> None:
    made = device(kind)
    order: list[Op] = data.draw(st.permutations(ops(made)))
    rests = data.draw(st.integers(0, (1 << len(order)) - 1))  # after which of them all run
    with Platform(seed=data.draw(st.integers(0, 7))) as xen:
        guest = make(xen, personality)
        before = plain(xen, guest, made)
        sloppy = Sloppy(xen, made)
        for index, op in enumerate(order):
            sloppy.write(op)
            if rests >> index & 1:
                xen.run()
        settle(xen)
        assert connected(guest, made)
        clean(xen, sloppy)
        # What the backend still held when its frontend went is taken back with the next need.
        properly(xen, guest, made)
        assert leaks(before, take_census(xen)) == []


@both
@of_each_kind
@pytest.mark.parametrize("last", ["online", "state", "hotplug-status", "frontend", "script", "mac"])
def test_a_key_of_the_backend_that_comes_last_while_everybody_looks_makes_a_device(
    personality: str, kind: str, last: str
) -> None:
    made = device(kind)
    # The script was quick, and a frontend is there when its backend is not online yet.
    places = {("B", "hotplug-status"): -1, ("F", "mac"): 1, ("B", "online"): 2, ("B", last): 3}
    order = sorted(ops(made), key=lambda op: places.get(op[:2], 0))
    with Platform(seed=3) as xen:
        guest = make(xen, personality)
        sloppy = Sloppy(xen, made)
        for op in order:
            sloppy.write(op)
            xen.run()
        settle(xen)
        assert connected(guest, made)


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 30)),
    st.tuples(st.just("write"), st.integers(0, 30)),
    st.tuples(st.just("write"), st.integers(0, 30)),
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.tuples(st.just("tree"), st.integers(0, 2)),
    st.tuples(st.just("all"), st.just(0)),
    st.tuples(st.just("run"), st.just(0)),
    st.tuples(st.just("wait"), st.just(0)),
)


@both
@of_each_kind
@settings(max_examples=60)
@given(plan=st.lists(steps, max_size=40), seed=st.integers(0, 7))
def test_whatever_it_does_the_next_proper_device_works(
    personality: str, kind: str, plan: list[tuple[str, int]], seed: int
) -> None:
    made = device(kind)
    keys = ops(made)
    with Platform(seed=seed) as xen:
        guest = make(xen, personality)
        before = plain(xen, guest, made)
        sloppy = Sloppy(xen, made)
        for what, number in plan:
            end, key, _value = keys[number % len(keys)]
            if what == "write":
                sloppy.write(keys[number % len(keys)])
            elif what == "delete":
                sloppy.delete(end, key)
            elif what == "tree":
                sloppy.delete("FBL"[number])
            elif what == "all":
                for op in keys:
                    sloppy.write(op)
            elif what == "run":
                xen.run()
            else:
                xen.advance(130)
        clean(xen, sloppy)
        properly(xen, guest, made)
        assert leaks(before, take_census(xen)) == []


MOMENTS = [(end, state) for end in "FB" for state in "123456"]


@both
@of_each_kind
@pytest.mark.parametrize("tree", ["F", "B", "L"])
@pytest.mark.parametrize(("end", "state"), MOMENTS, ids=[end + state for end, state in MOMENTS])
def test_a_tree_deleted_at_each_state_of_the_handshake(
    personality: str, kind: str, tree: str, end: str, state: str
) -> None:
    made = device(kind)
    with Platform(seed=3) as xen:
        guest = make(xen, personality)
        before = plain(xen, guest, made)
        sloppy = Sloppy(xen, made)
        path = f"{sloppy.homes[end]}/state"
        hits = []

        def moved() -> None:
            if not hits and sloppy.xs.read(path) == state:
                hits.append(state)
                sloppy.delete(tree)

        hotplug = xen.toolstack.hotplug
        token = xen.toolstack.ctx.watches.add(path, moved)
        for act in (
            lambda: hotplug.add_all(guest.created, [made], hot=True),
            lambda: hotplug.detach(guest.created, kind, made.devid, Mode.AUTO),
        ):
            with suppress(ToolstackError):  # it is told so, and nobody else minds
                act()
            xen.run()
        xen.toolstack.ctx.watches.remove(token)
        clean(xen, sloppy)
        properly(xen, guest, made)
        assert leaks(before, take_census(xen)) == []


# A toolstack that forgets one key for good: what the device is without it.
LACKING = {
    ("vbd", "F", "backend"): False,
    ("vbd", "F", "backend-id"): True,  # 0
    ("vbd", "F", "state"): True,  # the guest writes its own
    ("vbd", "F", "device-type"): False,  # no disk, as far as XenVbd sees
    ("vbd", "F", "virtual-device"): True,
    ("vbd", "B", "frontend"): False,
    ("vbd", "B", "state"): False,
    ("vbd", "B", "params"): False,
    ("vbd", "B", "mode"): False,
    ("vbd", "B", "hotplug-status"): False,
    ("vbd", "B", "dev"): True,
    ("vbd", "B", "discard-enable"): True,
    ("vif", "F", "backend"): False,
    ("vif", "F", "backend-id"): True,
    ("vif", "F", "state"): "linux",  # XenVif writes none before its backend is at InitWait
    ("vif", "F", "mac"): False,
    ("vif", "F", "handle"): True,
    ("vif", "F", "mtu"): True,  # 1500
    ("vif", "B", "frontend"): False,
    ("vif", "B", "state"): False,
    ("vif", "B", "mac"): False,
    ("vif", "B", "script"): False,
    ("vif", "B", "bridge"): True,  # xenbr0
    ("vif", "B", "hotplug-status"): False,
}


@both
@pytest.mark.parametrize(("kind", "end", "key"), list(LACKING))
def test_a_key_that_is_forgotten_and_comes_late(
    personality: str, kind: str, end: str, key: str
) -> None:
    made = device(kind)
    with Platform(seed=5) as xen:
        guest = make(xen, personality)
        sloppy = Sloppy(xen, made)
        late = [op for op in ops(made) if op[:2] == (end, key)]
        for op in ops(made):
            if op not in late:
                sloppy.write(op)
        settle(xen)
        assert connected(guest, made) is (LACKING[kind, end, key] in (True, personality))
        for op in late:
            sloppy.write(op)
        settle(xen)
        assert connected(guest, made)
