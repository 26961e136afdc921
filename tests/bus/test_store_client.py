"""What both store clients offer beyond requests: transactions, callbacks, long directories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.store.profile import LEGACY


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def bus(world: World) -> Any:
    return world.bus_store()[1]


def back(world: World) -> Any:
    return world.back_store()


CLIENTS = pytest.mark.parametrize("client", [bus, back])
DATA = "/local/domain/1/data"
Client = Callable[[World], Any]


@CLIENTS
def test_transaction_runs_its_body_again_until_it_commits(world: World, client: Client) -> None:
    store = client(world)
    world.write(f"{DATA}/n", "1")
    seen = []

    def increment(t: Any) -> str:
        value = store.read(f"{DATA}/n", t)
        seen.append(value)
        if len(seen) < 4:
            world.write(f"{DATA}/n", str(10 * len(seen)))
        store.write(f"{DATA}/n", str(int(value) + 1), t)
        return value

    assert store.transaction(increment) == "30"
    assert seen == ["1", "10", "20", "30"]
    assert world.read(f"{DATA}/n") == "31"


@CLIENTS
def test_transaction_gives_up_after_its_tries(world: World, client: Client) -> None:
    store = client(world)
    tries = []

    def body(t: Any) -> None:
        store.get(f"{DATA}/n", t)
        tries.append(t)
        world.write(f"{DATA}/n", str(len(tries)))

    with pytest.raises(StoreError, match="^EAGAIN: TRANSACTION_END: no commit in 3 tries$"):
        store.transaction(body, tries=3)
    assert len(tries) == 3


@CLIENTS
def test_an_exception_of_the_body_drops_the_transaction(world: World, client: Client) -> None:
    store = client(world)

    def body(t: Any) -> None:
        store.write(f"{DATA}/n", "1", t)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.transaction(body)
    with pytest.raises(ZeroDivisionError), store.begin() as t:
        body(t)
    assert store.get(f"{DATA}/n") is None
    assert [one for conn in world.server.connections.values() for one in conn.transactions] == []


@CLIENTS
def test_a_block_commits_once_and_raises_on_a_conflict(world: World, client: Client) -> None:
    store = client(world)
    with store.begin() as t:
        store.write(f"{DATA}/n", "1", t)
        assert store.get(f"{DATA}/n") is None
    assert world.read(f"{DATA}/n") == "1"

    def conflict() -> None:
        with store.begin() as t:
            store.read(f"{DATA}/n", t)
            world.write(f"{DATA}/n", "2")

    with pytest.raises(StoreError, match="^EAGAIN: TRANSACTION_END"):
        conflict()
    assert [one for conn in world.server.connections.values() for one in conn.transactions] == []


def test_a_block_of_a_guest_may_end_its_transaction_itself(world: World) -> None:
    store = bus(world)
    with store.begin() as t:
        store.write("data/n", "1", t)
        assert store.transaction_end(t, commit=False)
    with pytest.raises(LocalProtocolError):
        store.read("data", t)
    assert store.get("data/n") is None


@CLIENTS
def test_under_legacy_any_change_is_a_conflict_and_the_retry_helps(client: Client) -> None:
    world = make(profile=LEGACY)
    store = client(world)
    tries = []

    def body(t: Any) -> None:
        tries.append(t)
        if len(tries) == 1:
            world.write("/elsewhere", "")
        store.write(f"{DATA}/n", "1", t)

    store.transaction(body)
    assert len(tries) == 2
    world.hypervisor.close()


@CLIENTS
def test_callbacks_get_the_path_and_nothing_after_unwatch(world: World, client: Client) -> None:
    store = client(world)
    heard: list[str] = []
    watch = store.watch(f"{DATA}/w", heard.append)
    world.loop.run()
    assert heard == [f"{DATA}/w"]
    world.write(f"{DATA}/w/a", "")
    world.write(f"{DATA}/w/b", "")
    world.loop.run()
    assert heard == [f"{DATA}/w", f"{DATA}/w/a", f"{DATA}/w/b"]
    world.write(f"{DATA}/w/c", "")
    store.unwatch(watch) if client is back else watch.unwatch()
    world.loop.run()
    assert len(heard) == 3
    store.unwatch(watch) if client is back else watch.unwatch()


@CLIENTS
def test_two_watches_of_one_path_have_tokens_of_their_own(world: World, client: Client) -> None:
    store = client(world)
    first: list[str] = []
    second: list[str] = []
    store.watch(DATA, first.append)
    watch = store.watch(DATA, second.append)
    world.loop.run()
    store.unwatch(watch) if client is back else watch.unwatch()
    world.write(f"{DATA}/x", "")
    world.loop.run()
    assert (first, second) == ([DATA, f"{DATA}/x"], [DATA])


@CLIENTS
def test_a_callback_may_end_its_own_watch_and_make_requests(world: World, client: Client) -> None:
    store = client(world)
    heard: list[str | None] = []
    watch: Any = None

    def changed(path: str) -> None:
        heard.append(store.get(path))
        if len(heard) == 2:
            store.unwatch(watch) if client is back else watch.unwatch()

    watch = store.watch(f"{DATA}/w", changed)
    world.loop.run()
    for value in "123":
        world.write(f"{DATA}/w", value)
        world.loop.run()
    assert heard == [None, "1"]


@CLIENTS
def test_a_refused_watch_leaves_nothing(world: World, client: Client) -> None:
    store = client(world)
    with pytest.raises(StoreError, match="^EINVAL: WATCH of 'bad path'"):
        store.watch("bad path", lambda _: None)
    world.loop.run()
    assert [one for conn in world.server.connections.values() for one in conn.watches] == []


def test_relative_watches_of_a_guest_hear_relative_paths(world: World) -> None:
    heard: list[str] = []
    bus(world).watch("data", heard.append)
    world.write(f"{DATA}/x", "")
    world.loop.run()
    assert heard == ["data", "data/x"]


@CLIENTS
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2000])
def test_directories_of_any_length(world: World, client: Client, count: int) -> None:
    names = [f"name-{index:010d}" for index in range(count)]  # 16 bytes each with the NUL
    for name in names:
        world.write(f"{DATA}/d/{name}", "")
    world.write(f"{DATA}/d", "")
    assert client(world).directory(f"{DATA}/d") == names


@CLIENTS
def test_a_directory_that_changes_between_parts_is_read_again(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"name-{index:010d}" for index in range(600)]
    for name in names:
        world.write(f"{DATA}/d/{name}", "")
    store = client(world)
    target, method = (store, "request") if client is bus else (type(store.connection), "call")
    ask = getattr(target, method)
    parts = []

    def between(*args: Any) -> bytes:
        op = args[0] if client is bus else args[1]
        if op == XS.DIRECTORY_PART:
            parts.append(op)
            if len(parts) == 2:
                monkeypatch.setattr(target, method, ask)
                world.client.call(XS.RM, f"{DATA}/d/{names[3]}\0".encode())
                monkeypatch.setattr(target, method, between)
        return bytes(ask(*args))

    monkeypatch.setattr(target, method, between)
    assert store.directory(f"{DATA}/d") == names[:3] + names[4:]
    assert len(parts) == 5


@CLIENTS
def test_a_directory_that_never_rests_is_an_error(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client(world)
    count = iter(range(10**6))

    def always(*args: Any) -> bytes:
        op = args[0] if client is bus else args[1]
        if op == XS.DIRECTORY_PART:
            return b"%d\0a\0" % next(count)
        raise StoreError("E2BIG")

    target, method = (store, "request") if client is bus else (type(store.connection), "call")
    monkeypatch.setattr(target, method, always)
    with pytest.raises(StoreError, match=r"^E(2BIG|AGAIN): DIRECTORY_PART of '/d'"):
        store.directory("/d")


@CLIENTS
def test_permissions_also_in_a_transaction(world: World, client: Client) -> None:
    store = client(world)
    store.mkdir(f"{DATA}/p")
    with store.begin() as t:
        store.set_permissions(f"{DATA}/p", ["n1", "r0"], t)
        assert store.get_permissions(f"{DATA}/p", t) == ["n1", "r0"]
        assert store.get_permissions(f"{DATA}/p") == ["n1"]
    assert store.get_permissions(f"{DATA}/p") == ["n1", "r0"]
    assert store.exists(f"{DATA}/p")
    assert not store.exists(f"{DATA}/q")


@CLIENTS
def test_errors_name_the_request_and_the_path(world: World, client: Client) -> None:
    with pytest.raises(StoreError, match=f"^ENOENT: READ of '{DATA}/no'") as caught:
        client(world).read(f"{DATA}/no")
    error = caught.value
    assert (error.name, error.operation, error.path) == ("ENOENT", "READ", f"{DATA}/no")


BAD = f"{DATA}/!"  # no path
LONG = "v" * 5000  # bytes; no request is that long


@pytest.mark.parametrize(
    ("operation", "ask", "client"),
    [
        (operation, ask, client)
        for operation, ask in [
            ("READ", lambda store: store.read(BAD)),
            ("READ", lambda store: store.get(BAD)),
            ("READ", lambda store: store.exists(BAD)),
            ("DIRECTORY", lambda store: store.directory(BAD)),
            ("WRITE", lambda store: store.write(BAD, "1")),
            ("MKDIR", lambda store: store.mkdir(BAD)),
            ("RM", lambda store: store.remove(BAD)),
            ("GET_PERMS", lambda store: store.get_permissions(BAD)),
            ("SET_PERMS", lambda store: store.set_permissions(BAD, ["n1"])),
            ("WATCH", lambda store: store.watch(BAD, print)),
        ]
        for client in (bus, back)
    ],
)
def test_every_method_names_the_request_and_the_path(
    world: World, operation: str, ask: Callable[[Any], object], client: Client
) -> None:
    with pytest.raises(StoreError, match=f"^EINVAL: {operation} of '{BAD}'"):
        ask(client(world))


@pytest.mark.parametrize("inside", [False, True])
def test_write_all_names_the_one_that_was_refused(world: World, inside: bool) -> None:
    store = back(world)
    values = {"a": "1", "!": "2", "c": "3"}
    for more in ({}, {"long": "v" * 900}):  # also in steps
        t = store.connection.call(XS.TRANSACTION_START, b"\0")[:-1] if inside else b"0"
        with pytest.raises(StoreError, match=f"^EINVAL: WRITE of '{BAD}'"):
            store.write_all(DATA, values | more, int(t))
        assert store.get(f"{DATA}/a", int(t)) == "1"
        assert store.get(f"{DATA}/c", int(t)) is None


@pytest.mark.parametrize(
    ("ask", "operation", "path"),
    [
        (lambda store: store.write(f"{DATA}/n", LONG), "WRITE", f"{DATA}/n"),
        (lambda store: store.write_all(DATA, {"m": "1", "n": LONG}), "WRITE", f"{DATA}/n"),
        (lambda store: store.set_permissions(DATA, ["n1"] * 2000), "SET_PERMS", DATA),
    ],
)
def test_a_request_that_is_too_long_is_not_sent(
    world: World, ask: Callable[[Any], object], operation: str, path: str
) -> None:
    store = back(world)
    with pytest.raises(StoreError, match=f"^E2BIG: {operation} of '{path}': .* at most 4096$"):
        ask(store)
    assert store.get(f"{DATA}/n") is None
    largest = "v" * (4096 - len(f"{DATA}/n") - 1)
    store.write(f"{DATA}/n", largest)
    assert store.read(f"{DATA}/n") == largest


def test_a_guests_request_that_is_too_long_is_not_sent(world: World) -> None:
    with pytest.raises(StoreError, match=f"^E2BIG: SET_PERMS of '{DATA}': .* at most 4096$"):
        bus(world).set_permissions(DATA, ["n1"] * 2000)


def test_several_reads_are_one_look_at_the_ring() -> None:
    made = make()
    try:
        store = made.bus_store()[1]
        for index in range(40):
            made.write(f"{DATA}/{index}", f"value {index}")
        paths = [f"data/{index}" for index in range(50)]
        assert store.get_many(paths) == [f"value {index}" for index in range(40)] + [None] * 10
        assert store.get_many([]) == []
        assert store.get("data/0") == "value 0", "and one alone works as before"
    finally:
        made.hypervisor.close()


def test_several_writes_and_removals_in_their_order(world: World) -> None:
    store = bus(world)
    store.write_many([("data/a", "1"), ("data/b", "2"), ("data/a", None), ("data/gone", None)])
    assert (world.read(f"{DATA}/b"), store.get("data/a")) == ("2", None)
    store.write_many([("data/c", "x" * 900), ("data/d", "y" * 900), ("data/e", "z" * 1000)])
    assert [len(store.read(f"data/{name}")) for name in "cde"] == [900, 900, 1000]


def test_of_several_writes_the_first_refusal_is_raised_and_the_rest_is_done(world: World) -> None:
    store = bus(world)
    with pytest.raises(StoreError) as caught:
        store.write_many([("data/a", "1"), ("/local/domain/0/x", "2"), ("data/b", "3")])
    assert (caught.value.name, caught.value.path) == ("EACCES", "/local/domain/0/x")
    assert (store.get("data/a"), store.get("data/b")) == ("1", "3")


def test_several_writes_in_a_transaction_are_seen_at_its_end(world: World) -> None:
    store = bus(world)
    transaction = store.transaction_start()
    store.write_many([("data/a", "1"), ("data/b", "2")], transaction)
    assert store.get("data/a") is None
    assert store.transaction_end(transaction, commit=True)
    assert store.get_many(["data/a", "data/b"]) == ["1", "2"]


def test_events_between_the_replies_are_not_lost(world: World) -> None:
    store = bus(world)
    woken: list[int] = []
    task = store.domain.task("events", lambda: woken.append(1))
    store.watch_add("data", task)
    store.domain.loop.run()
    woken.clear()
    store.write_many([(f"data/{index}", "x") for index in range(30)])
    store.domain.loop.run()
    assert woken
