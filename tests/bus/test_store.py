"""The guest's store client: every byte goes through the ring page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.bus.store import RSP
from xenpv.errors import LocalProtocolError, PeerProtocolError, StoreError
from xenpv.xen.domain import XENSTORE_PFN

PAGE = "xenstore_domain_interface"


def index(world: World, field: str) -> int:
    return world.guest.load32(XENSTORE_PFN, offsetof(PAGE, field))


def test_a_request_lies_in_the_page_as_on_the_wire(world: World) -> None:
    _, store = world.bus_store()
    before = index(world, "req_prod")
    store.write("data/x", "hello")
    length = index(world, "req_prod") - before
    raw = world.guest.read(XENSTORE_PFN, before % 1024, length)
    assert raw == (b"\x0b\0\0\0" + b"\x01\0\0\0" + b"\0\0\0\0" + b"\x0c\0\0\0" + b"data/x\0hello")
    assert index(world, "req_cons") == index(world, "req_prod")
    assert index(world, "rsp_cons") == index(world, "rsp_prod")


def test_write_read_directory_remove(world: World) -> None:
    _, store = world.bus_store()
    store.write("data/b", "2")
    store.write("data/a", "1")
    assert store.directory("data") == ["b", "a"]
    assert store.read("data/a") == "1"
    assert world.read("/local/domain/1/data/a") == "1"
    store.remove("data/a")
    assert store.get("data/a") is None
    assert store.directory("data") == ["b"]
    assert store.get_permissions("data/b") == ["n1"]
    store.set_permissions("data/b", ["n1", "r0"])
    assert store.get_permissions("data/b") == ["n1", "r0"]


def test_refusals_carry_xenstoreds_name(world: World) -> None:
    _, store = world.bus_store()
    world.write("/secret/x", "1")
    world.chmod("/secret", "n0")
    world.chmod("/secret/x", "n0")
    with pytest.raises(StoreError, match="^EACCES: READ of '/secret/x'") as caught:
        store.read("/secret/x")
    assert caught.value.name == "EACCES"
    assert store.get("/secret/x") is None
    with pytest.raises(StoreError, match="^EACCES"):
        store.write("memory/target", "0")
    with pytest.raises(StoreError, match="^EINVAL"):
        store.read("data//x")


def test_a_value_larger_than_the_ring_arrives_whole(world: World) -> None:
    _, store = world.bus_store()
    world.write("/local/domain/1/data/big", "x" * 1900)
    world.chmod("/local/domain/1/data/big", "n1")
    assert store.read("data/big") == "x" * 1900


def test_text_has_the_drivers_limit(world: World) -> None:
    _, store = world.bus_store()
    store.write("data/t", "y" * 1023)
    with pytest.raises(LocalProtocolError, match=r"^1024 bytes of text for data/t, 1023 fit"):
        store.write("data/t", "y" * 1024)
    with pytest.raises(StoreError, match="^E2BIG"):
        store.request(11, b"data/t\0" + bytes(4096))


def test_a_watch_wakes_its_task_at_registration_and_at_changes(world: World) -> None:
    _, store = world.bus_store()
    fired: list[str] = []
    watch = store.watch_add("data", world.guest.task("w", lambda: fired.append("w")))
    world.loop.run()
    assert fired == ["w"]
    world.write("/local/domain/1/data/new", "1")
    assert fired == ["w"]  # not before the loop runs
    world.loop.run()
    assert fired == ["w", "w"]
    store.write("data/own", "1")
    world.loop.run()
    assert fired == ["w", "w", "w"]
    store.watch_remove(watch)
    world.write("/local/domain/1/data/new", "2")
    world.loop.run()
    assert fired == ["w", "w", "w"]
    assert store.watches() == []


def test_a_watch_is_asked_which_events_concern_it(world: World) -> None:
    _, store = world.bus_store()
    fired: list[str] = []
    asked: list[bytes] = []

    def concerns(path: bytes) -> bool:
        asked.append(path)
        return path == b"data/this"

    store.watch_add("data", world.guest.task("w", lambda: fired.append("w")), concerns)
    for name in ("other", "this"):
        world.write(f"/local/domain/1/data/{name}", "1")
        world.loop.run()
    assert asked == [b"data", b"data/other", b"data/this"]
    assert fired == ["w"]


def test_a_refused_watch_leaves_no_handle(world: World) -> None:
    _, store = world.bus_store()
    with pytest.raises(StoreError, match="^EINVAL"):
        store.watch_add("bad path", world.guest.task("w", lambda: None))
    assert store.watches() == []


def test_transactions_commit_abort_and_conflict(world: World) -> None:
    _, store = world.bus_store()
    first = store.transaction_start()
    store.write("data/t", "1", first)
    assert store.get("data/t") is None
    assert store.transaction_end(first, commit=True)
    assert store.read("data/t") == "1"
    with pytest.raises(LocalProtocolError, match="^the transaction has ended$"):
        store.write("data/t", "2", first)
    second = store.transaction_start()
    store.write("data/t", "2", second)
    assert store.transaction_end(second, commit=False)
    assert store.read("data/t") == "1"
    third = store.transaction_start()
    assert store.read("data/t", third) == "1"
    world.write("/local/domain/1/data/t", "9")
    store.write("data/t", "3", third)
    assert not store.transaction_end(third, commit=True)
    assert store.read("data/t") == "9"


def test_indices_go_on_across_the_wrap() -> None:
    world = make()
    for field in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        world.guest.store32(XENSTORE_PFN, offsetof(PAGE, field), 0xFFFFFF00)
    _, store = world.bus_store()
    for number in range(40):
        store.write("data/n", str(number))
        assert store.read("data/n") == str(number)
    assert index(world, "req_prod") < 0xFFFFFF00
    world.hypervisor.close()


def test_no_server_is_an_error_not_a_hang(world: World) -> None:
    _, store = world.bus_store()
    world.daemon.rings[1].frozen = 1
    with pytest.raises(StoreError, match="^EIO: READ of 'data': xenstored does not answer$"):
        store.read("data")


def inject(world: World, data: bytes) -> None:
    """Bytes in the response ring that xenstored never wrote."""
    ring = world.daemon.rings[1]
    raw = ffi.from_buffer(data)
    assert lib.stream_put(world.dom0.kernel, ring.pfn, *RSP, raw, len(data)) == len(data)
    world.dom0.evtchn.send(ring.port)


@given(st.binary(min_size=1, max_size=900))
def test_garbage_from_the_server_is_dropped_and_never_raises(data: bytes) -> None:
    world = make()
    try:
        _, store = world.bus_store()
        inject(world, data)
        world.loop.run()
        assert store.watches() == []
        assert len(store._received) <= 4096 + 16
    finally:
        world.hypervisor.close()


def test_an_index_out_of_bounds_is_the_peers_fault(world: World) -> None:
    _, store = world.bus_store()
    ring = world.daemon.rings[1]
    world.dom0.store32(ring.pfn, offsetof(PAGE, "rsp_prod"), 5000)
    with pytest.raises(PeerProtocolError):
        store.pump()


def test_unsolicited_messages_are_counted(world: World) -> None:
    _, store = world.bus_store()
    inject(world, b"\x02\0\0\0\x63\0\0\0\0\0\0\0\x01\0\0\0z")
    inject(world, b"\x0f\0\0\0\0\0\0\0\0\0\0\0\x06\0\0\0a\0b|c\0")
    world.loop.run()
    assert store.dropped == 2
    store.write("data/x", "still served")
    assert store.read("data/x") == "still served"
