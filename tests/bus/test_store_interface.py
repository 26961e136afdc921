"""STORE version 2 by operation and situation, as a driver sees it (xenbus spec 2.3)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.bus.test_store import inject
from tests.world import World
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.layout import offsetof
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.store import REQ, RSP, StoreInterface
from xenpv.bus.suspend import SuspendInterface
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.xen.domain import XENSTORE_PFN
from xenpv.xen.loop import NS_PER_S

HOME = "/local/domain/1"
Rows = list[tuple[str, str, tuple[Any, ...], NTSTATUS]]
PAGE = "xenstore_domain_interface"


@attrs.define(eq=False)
class Scene:
    world: World
    suspend: SuspendInterface
    evtchn: EvtchnInterface
    store: StoreInterface
    view: InterfaceVersion
    fired: list[str]

    def event(self, name: str = "w") -> Any:
        return self.world.guest.task(name, lambda: self.fired.append(name))

    def run(self) -> None:
        self.world.loop.run()

    def resume(self, result: int = 0) -> None:
        self.suspend.trigger()
        self.world.dom0.domctl.setvcpucontext(1, 0, rax=result)
        self.world.dom0.domctl.resumedomain(1)
        self.run()


def make(world: World, *, fifo: bool = False) -> Scene:
    suspend = SuspendInterface(world.guest)
    evtchn = EvtchnInterface(world.guest, fifo=fifo, suspend=suspend)
    port = world.guest.hvm_param(HVM_PARAM.STORE_EVTCHN)
    store = StoreInterface(world.guest, evtchn, XENSTORE_PFN, port, suspend=suspend, watchdog=True)
    view = query_interface([store], StoreInterface.GUID, 2)
    view.acquire()
    return Scene(world, suspend, evtchn, store, view, [])


@pytest.fixture(params=[False, True], ids=["2-level", "fifo"])
def scene(world: World, request: pytest.FixtureRequest) -> Scene:
    world.write(f"{HOME}/data/key", "value")
    world.chmod(f"{HOME}/data/key", "n1")
    world.write(f"{HOME}/data/empty", "")
    world.write("/secret", "1")
    world.chmod("/secret", "n0")
    return make(world, fifo=request.param)


# versions

OPERATIONS = [
    "free",
    "read",
    "printf",
    "permissions_set",
    "remove",
    "directory",
    "transaction_start",
    "transaction_end",
    "watch_add",
    "watch_remove",
    "poll",
]


def test_version_2_has_its_operations(scene: Scene) -> None:
    assert list(scene.view.operations) == OPERATIONS
    assert scene.view.size == 32 + 8 * 13
    for version in (1, 3):
        with pytest.raises(NtStatusError) as caught:
            query_interface([scene.store], StoreInterface.GUID, version)
        assert caught.value.status is NTSTATUS.NOT_SUPPORTED


# statuses

LONG = "x" * 200
ROWS: Rows = [
    ("read, missing", "read", (None, None, "data/no"), NTSTATUS.OBJECT_NAME_NOT_FOUND),
    ("read, forbidden", "read", (None, None, "/secret"), NTSTATUS.ACCESS_DENIED),
    ("read, no path", "read", (None, None, "data//key"), NTSTATUS.INVALID_PARAMETER),
    ("read, empty node", "read", (None, "data", ""), NTSTATUS.INVALID_PARAMETER),
    (
        "read, 2048 characters, relative",
        "read",
        (None, None, "d" * 2048),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    (
        "read, 2047 characters, relative: the server",
        "read",
        (None, None, "d" * 2047),
        NTSTATUS.OBJECT_NAME_NOT_FOUND,
    ),
    (
        "read, 2048 with its prefix",
        "read",
        (None, "data", "d" * 2043),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    (
        "read, 3072 characters, absolute",
        "read",
        (None, None, "/" + "d" * 3071),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    (
        "read, 3071 characters, absolute: the server",
        "read",
        (None, None, "/" + "d" * 3070),
        NTSTATUS.INVALID_PARAMETER,
    ),
    (
        "read, 3072 after an empty prefix",
        "read",
        (None, "", "d" * 3071),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    (
        "read, 3071 after an empty prefix: the server",
        "read",
        (None, "", "d" * 3070),
        NTSTATUS.INVALID_PARAMETER,
    ),
    ("printf, forbidden", "printf", (None, None, "memory/target", "0"), NTSTATUS.ACCESS_DENIED),
    (
        "printf, 1024 characters",
        "printf",
        (None, "data", "t", "%s", "x" * 1024),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    (
        "printf, the path too long",
        "printf",
        (None, None, "d" * 2048, "0"),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
    ("printf, no path", "printf", (None, None, "a b", "0"), NTSTATUS.INVALID_PARAMETER),
    (
        "remove, missing with its parent",
        "remove",
        (None, "data", "no/x"),
        NTSTATUS.OBJECT_NAME_NOT_FOUND,
    ),
    ("remove, forbidden", "remove", (None, None, "/secret"), NTSTATUS.ACCESS_DENIED),
    ("remove, the path too long", "remove", (None, None, "d" * 2048), NTSTATUS.INVALID_BUFFER_SIZE),
    ("directory, empty", "directory", (None, "data", "empty"), NTSTATUS.OBJECT_PATH_NOT_FOUND),
    ("directory, missing", "directory", (None, "data", "no"), NTSTATUS.OBJECT_NAME_NOT_FOUND),
    ("directory, forbidden", "directory", (None, None, "/secret"), NTSTATUS.ACCESS_DENIED),
    ("directory, more than one reply", "directory", (None, None, "/many"), NTSTATUS.UNSUCCESSFUL),
    (
        "permissions, mask 4",
        "permissions_set",
        (None, "data", "key", [(1, 4)]),
        NTSTATUS.INVALID_PARAMETER,
    ),
    (
        "permissions, mask -1",
        "permissions_set",
        (None, "data", "key", [(1, 0), (0, -1)]),
        NTSTATUS.INVALID_PARAMETER,
    ),
    (
        "permissions, not the owner",
        "permissions_set",
        (None, None, "/secret", [(0, 0)]),
        NTSTATUS.ACCESS_DENIED,
    ),
    (
        "permissions, missing",
        "permissions_set",
        (None, "data", "no", [(1, 0)]),
        NTSTATUS.OBJECT_NAME_NOT_FOUND,
    ),
    (
        "permissions, more than 4096 bytes",
        "permissions_set",
        (None, "data", "key", [(1, 0)] * 1500),
        NTSTATUS.UNSUCCESSFUL,
    ),
    ("watch, no path", "watch_add", (None, "a b", "event"), NTSTATUS.INVALID_PARAMETER),
    (
        "watch, the path too long",
        "watch_add",
        (None, "d" * 2048, "event"),
        NTSTATUS.INVALID_BUFFER_SIZE,
    ),
]


@pytest.mark.parametrize(
    ("operation", "arguments", "status"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_refusal_has_its_status_and_leaves_nothing(
    scene: Scene, operation: str, arguments: tuple[Any, ...], status: NTSTATUS
) -> None:
    for number in range(40 if "/many" in arguments else 0):
        scene.world.write(f"/many/{LONG}{number}", "")
        scene.world.chmod("/many", "n0", "r1")
    given = [scene.event() if one == "event" else one for one in arguments]
    with pytest.raises(NtStatusError) as caught:
        getattr(scene.view, operation)(*given)
    assert caught.value.status is status
    assert caught.value.operation in (f"STORE {operation}", "")
    assert scene.store.leftovers() == []
    assert scene.view.read(None, "data", "key").text == "value"


@pytest.mark.parametrize(("name", "status"), [
    ("EINVAL", NTSTATUS.INVALID_PARAMETER), ("EACCES", NTSTATUS.ACCESS_DENIED), ("EEXIST", NTSTATUS.OBJECTID_EXISTS),
    ("EISDIR", NTSTATUS.FILE_IS_A_DIRECTORY), ("ENOENT", NTSTATUS.OBJECT_NAME_NOT_FOUND), ("ENOMEM", NTSTATUS.NO_MEMORY),
    ("ENOSPC", NTSTATUS.INSUFFICIENT_RESOURCES), ("EIO", NTSTATUS.UNEXPECTED_IO_ERROR), ("ENOTEMPTY", NTSTATUS.DIRECTORY_NOT_EMPTY),
    ("ENOSYS", NTSTATUS.NOT_IMPLEMENTED), ("EROFS", NTSTATUS.MEDIA_WRITE_PROTECTED), ("EBUSY", NTSTATUS.PIPE_BUSY),
    ("EAGAIN", NTSTATUS.RETRY), ("EISCONN", NTSTATUS.PIPE_CONNECTED), ("EQUOTA", NTSTATUS.QUOTA_EXCEEDED),
    ("E2BIG", NTSTATUS.UNSUCCESSFUL), ("EPERM", NTSTATUS.UNSUCCESSFUL), ("", NTSTATUS.UNSUCCESSFUL),
])  # fmt: skip
def test_error_replies_map_by_name(
    scene: Scene, name: str, status: NTSTATUS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bytes:
        raise StoreError(name)

    monkeypatch.setattr(StoreInterface, "request", refuse)
    with pytest.raises(NtStatusError) as caught:
        scene.view.read(None, "data", "key")
    assert caught.value.status is status


# what succeeds


def test_read_gives_a_buffer_that_is_freed_once(scene: Scene) -> None:
    scene.world.write(f"{HOME}/data/nul", "a\0b")
    scene.world.chmod(f"{HOME}/data/nul", "n1")
    buffers = [
        scene.view.read(None, *path)
        for path in (
            ("data", "key"),
            (None, "data/nul"),
            ("", f"{HOME[1:]}/data/key"),
            (HOME, "data/key"),
        )
    ]
    assert [one.data for one in buffers] == [b"value\0", b"a\0b\0", b"value\0", b"value\0"]
    assert [one.text for one in buffers] == ["value", "a", "value", "value"]
    assert scene.store.leftovers() == [
        "a buffer of 6 bytes",
        "a buffer of 4 bytes",
        "a buffer of 6 bytes",
        "a buffer of 6 bytes",
    ]
    for one in buffers:
        scene.view.free(one)
    with pytest.raises(LocalProtocolError, match="^the buffer is not STORE's, or is free already$"):
        scene.view.free(buffers[0])


def test_directory_has_its_names_between_nuls(scene: Scene) -> None:
    buffer = scene.view.directory(None, None, "data")
    assert buffer.data == b"key\0empty\0\0\0"
    assert buffer.names == ["key", "empty"]


def test_printf_formats_and_writes_no_nul(scene: Scene) -> None:
    scene.view.printf(None, "data", "n", "%u %s%%", 7, "x")
    scene.view.printf(None, None, "data/t", "100%")
    scene.view.printf(None, None, "data/long", "y" * 1023)
    scene.view.printf(None, None, "data/cut", "a\0b")
    assert [scene.world.read(f"{HOME}/data/{key}") for key in ("n", "t", "cut")] == [
        "7 x%",
        "100%",
        "a",
    ]
    assert len(scene.world.read(f"{HOME}/data/long")) == 1023
    scene.view.remove(None, "data", "n")
    assert scene.store.get("data/n") is None


def test_permissions_are_letters_and_domids(scene: Scene) -> None:
    scene.view.permissions_set(None, "data", "key", [(1, 0), (2, 1), (3, 2), (4, 3)])
    assert scene.store.get_permissions("data/key") == ["n1", "r2", "w3", "b4"]


# transactions


def test_a_transaction_commits_aborts_or_is_to_be_done_again(scene: Scene) -> None:
    view = scene.view
    first = view.transaction_start()
    view.printf(first, "data", "t", "1")
    assert scene.store.get("data/t") is None
    assert scene.store.leftovers() == [f"transaction {first.id}"]
    view.transaction_end(first, True)
    second = view.transaction_start()
    view.remove(second, "data", "t")
    view.transaction_end(second, False)
    assert scene.store.get("data/t") == "1"
    third = view.transaction_start()
    view.free(view.read(third, "data", "t"))
    scene.world.write(f"{HOME}/data/t", "9")
    view.printf(third, "data", "t", "3")
    with pytest.raises(NtStatusError) as caught:
        view.transaction_end(third, True)
    assert caught.value.status is NTSTATUS.RETRY
    assert scene.store.leftovers() == []
    for use in (lambda: view.read(third, "data", "t"), lambda: view.transaction_end(third, False)):
        with pytest.raises(LocalProtocolError, match="^the transaction has ended$"):
            use()


def test_another_error_at_the_end_keeps_the_handle(scene: Scene) -> None:
    transaction = scene.view.transaction_start()
    number, transaction.id = transaction.id, 0xFFFF
    with pytest.raises(NtStatusError) as caught:
        scene.view.transaction_end(transaction, True)
    assert caught.value.status is NTSTATUS.OBJECT_NAME_NOT_FOUND
    assert transaction.active
    transaction.id = number
    scene.view.transaction_end(transaction, False)
    assert scene.store.leftovers() == []


def test_a_transaction_id_that_is_no_number_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (b"x\0", b"\0", b"-1\0", b"4294967296\0"):
        monkeypatch.setattr(StoreInterface, "request", lambda *_, text=text: text)
        with pytest.raises(NtStatusError) as caught:
            scene.view.transaction_start()
        assert caught.value.status is NTSTATUS.UNEXPECTED_IO_ERROR
    assert scene.store.leftovers() == []


# watches


def test_a_watch_fires_at_once_and_at_changes_until_it_is_removed(scene: Scene) -> None:
    watch = scene.view.watch_add("data", "key", scene.event())
    scene.run()
    assert scene.fired == ["w"]
    assert scene.store.leftovers() == ["a watch of data/key"]
    scene.world.write(f"{HOME}/data/key", "2")
    scene.run()
    assert scene.fired == ["w", "w"]
    scene.view.watch_remove(watch)
    scene.world.write(f"{HOME}/data/key", "3")
    scene.run()
    assert scene.fired == ["w", "w"]
    with pytest.raises(LocalProtocolError, match="^the watch of data/key is removed already$"):
        scene.view.watch_remove(watch)


def test_a_token_is_the_drivers(scene: Scene) -> None:
    event = scene.event()
    watch = scene.view.watch_add(None, "data", event)
    assert watch.token == b"TOK|%016X|%04X" % (event.number, watch.id)
    assert len(watch.token) + 1 == 26


def test_watch_ids_in_use_are_skipped_and_wrap(scene: Scene) -> None:
    first = scene.view.watch_add(None, "data", scene.event())
    scene.store._watch_id = 0xFFFE
    ids = [scene.view.watch_add(None, "data", scene.event()).id for _ in range(3)]
    assert (first.id, ids) == (1, [0xFFFF, 0, 2])


def test_request_ids_wrap(scene: Scene) -> None:
    scene.store._req_id = 0xFFFE
    for _ in range(4):
        assert scene.store.read("data/key") == "value"
    assert scene.store._req_id == 2


def test_a_watch_that_xenstored_refuses_to_remove_stays(scene: Scene) -> None:
    watch = scene.view.watch_add(None, "data", scene.event())
    path, watch.path = watch.path, "elsewhere"
    with pytest.raises(NtStatusError) as caught:
        scene.view.watch_remove(watch)
    assert caught.value.status is NTSTATUS.OBJECT_NAME_NOT_FOUND
    assert scene.store.watches() == [watch]
    watch.path = path
    scene.view.watch_remove(watch)


DROPPED = [
    ("a reply to nobody", b"\x02\0\0\0\x63\0\0\0\0\0\0\0\x01\0\0\0z"),
    ("an event with an unknown token", b"\x0f\0\0\0\0\0\0\0\0\0\0\0\x06\0\0\0a\0b|c\0"),
    ("an event with one string", b"\x0f\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0a\0"),
    ("an empty event", b"\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("a reply above 4096 bytes", b"\x02\0\0\0\x63\0\0\0\0\0\0\0\x01\x10\0\0"),
]


@pytest.mark.parametrize("data", [row[1] for row in DROPPED], ids=[row[0] for row in DROPPED])
def test_what_was_not_asked_for_is_dropped_and_counted(scene: Scene, data: bytes) -> None:
    inject(scene.world, data)
    scene.run()
    assert scene.store.dropped == 1
    assert scene.store.read("data/key") == "value"


def test_indices_that_cannot_be_stop_the_reading_and_nothing_else(scene: Scene) -> None:
    ring = scene.world.daemon.rings[1]
    scene.world.dom0.store32(ring.pfn, offsetof(PAGE, "rsp_prod"), 5000)
    scene.world.dom0.evtchn.send(ring.port)
    scene.run()
    assert "runs past the ring" in scene.store.broken


def test_poll_lets_xenstored_answer(scene: Scene) -> None:
    event = scene.event()
    scene.view.watch_add(None, "data/key", event)
    scene.run()
    message = b"\x0b\0\0\0\x77\x77\0\0\0\0\0\0\x0a\0\0\0data/key\0x"
    put = lib.stream_put(
        scene.world.guest.kernel, XENSTORE_PFN, *REQ, ffi.from_buffer(message), len(message)
    )
    assert put == len(message)
    scene.evtchn.send(scene.store.channel)
    scene.view.poll()
    assert scene.store.dropped == 1  # the reply
    assert event.queued


# handles before and after


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_called_before_acquire_and_after_release(scene: Scene, name: str) -> None:
    view = query_interface([scene.store], StoreInterface.GUID, 2)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=f"^STORE {name}: it is not acquired$"):
            getattr(view, name)
        view.acquire()
        view.release()


def test_the_last_release_names_what_is_left_and_it_starts_again(scene: Scene) -> None:
    view = scene.view
    view.read(None, "data", "key")
    view.watch_add("data", "key", scene.event())
    transaction = view.transaction_start()
    said = f"^STORE is released with transaction {transaction.id}, a watch of data/key, a buffer of 6 bytes$"
    with pytest.raises(LocalProtocolError, match=said):
        view.release()
    assert scene.evtchn.channels() == []
    view.acquire()
    assert view.read(None, "data", "key").text == "value"
    assert len(scene.evtchn.channels()) == 1


# the watchdog


def test_the_watchdog_keeps_nothing_running_and_says_nothing_of_a_quiet_ring(scene: Scene) -> None:
    now = scene.world.loop.now
    scene.run()
    assert scene.world.loop.now == now
    for _ in range(5):
        scene.store.write("data/t", "1")
        scene.world.loop.advance(20 * NS_PER_S)
    assert scene.store.barks == 0


def test_the_watchdog_reads_what_came_without_an_event(scene: Scene) -> None:
    scene.view.watch_add("data", "key", scene.event())
    scene.run()
    data = b"\x02\0\0\0\x63\0\0\0\0\0\0\0\x01\0\0\0z"
    ring = scene.world.daemon.rings[1]
    scene.world.loop.advance(16 * NS_PER_S)
    lib.stream_put(scene.world.dom0.kernel, ring.pfn, *RSP, ffi.from_buffer(data), len(data))
    scene.world.loop.advance(13 * NS_PER_S)
    assert scene.store.barks == 0
    scene.world.loop.advance(2 * NS_PER_S)
    assert (scene.store.barks, scene.store.dropped) == (1, 1)
    scene.world.loop.advance(60 * NS_PER_S)
    assert scene.store.barks == 1


# suspend


def test_after_a_suspend_transactions_and_watches_have_expired(scene: Scene) -> None:
    view, store = scene.view, scene.store
    transaction, other = view.transaction_start(), view.transaction_start()
    watch = view.watch_add("data", "key", scene.event())
    scene.run()
    scene.fired.clear()
    scene.resume()
    assert scene.fired == ["w"]  # once, for the suspend
    sent = store.requests
    for use in (
        lambda: view.read(transaction, "data", "key"),
        lambda: view.directory(transaction, None, "data"),
        lambda: view.printf(transaction, "data", "t", "1"),
        lambda: view.remove(transaction, "data", "key"),
        lambda: view.permissions_set(transaction, "data", "key", [(1, 0)]),
    ):
        with pytest.raises(NtStatusError) as caught:
            use()
        assert caught.value.status is NTSTATUS.UNSUCCESSFUL
    for one, commit in ((transaction, True), (other, False)):
        with pytest.raises(NtStatusError) as caught:
            view.transaction_end(one, commit)
        assert caught.value.status is NTSTATUS.RETRY
        with pytest.raises(LocalProtocolError, match="^the transaction has ended$"):
            view.transaction_end(one, commit)
    assert store.requests == sent  # no traffic
    scene.world.write(f"{HOME}/data/key", "2")
    scene.run()
    assert scene.fired == ["w"]
    sent = store.requests
    view.watch_remove(watch)
    assert store.requests == sent
    assert store.leftovers() == []
    again = view.watch_add("data", "key", scene.event("again"))
    scene.world.write(f"{HOME}/data/key", "3")
    scene.run()
    assert scene.fired[1:] in (["again"], ["again", "again"])
    view.watch_remove(again)


def test_after_a_suspend_the_port_is_that_of_the_hvm_parameter(scene: Scene) -> None:
    guest = scene.world.guest
    new: list[int] = []

    def toolstack() -> None:
        """As a restore would: another port, told to xenstored."""
        if not scene.evtchn.fifo:
            port = guest.evtchn.alloc_unbound(0)
            scene.world.dom0.hvm.set_param(1, HVM_PARAM.STORE_EVTCHN, port)
            scene.world.client.call(8, b"1\0%d\0%d\0" % (XENSTORE_PFN, port))

    before = scene.store.channel
    scene.suspend.on_every_cpu = lambda _vcpu: toolstack()
    scene.resume()
    new.append(scene.store.channel.port)
    assert new == [guest.hvm_param(HVM_PARAM.STORE_EVTCHN)]
    assert (before.active, scene.store.channel.active) == (False, True)
    assert scene.store.read("data/key") == "value"
    assert len(scene.evtchn.channels()) == 1


def test_a_cancelled_suspend_leaves_everything_as_it_was(scene: Scene) -> None:
    view = scene.view
    transaction = view.transaction_start()
    watch = view.watch_add("data", "key", scene.event())
    scene.run()
    channel = scene.store.channel
    scene.resume(1)
    assert scene.fired == ["w"]
    view.printf(transaction, "data", "key", "2")
    view.transaction_end(transaction, True)
    scene.run()
    assert scene.fired == ["w", "w"]
    assert scene.store.channel is channel
    view.watch_remove(watch)


HALF = b"\x02\0\0\0\x63\0\0\0\0\0\0\0\xff\0\0\0z"


def test_half_a_message_is_dropped_in_a_new_domain(scene: Scene) -> None:
    inject(scene.world, HALF)
    scene.run()
    assert len(scene.store._received) == 17
    scene.suspend.trigger()
    for offset in (*REQ[2:], *RSP[2:]):  # the builder cleared the page
        scene.world.guest.store32(XENSTORE_PFN, offset, 0)
    scene.world.dom0.domctl.resumedomain(1)
    scene.run()
    assert scene.store._received == b""
    assert scene.store.read("data/key") == "value"


def test_half_a_message_is_completed_in_the_same_domain(scene: Scene) -> None:
    """xenstored goes on where it was: what it writes next would be taken for a header."""
    inject(scene.world, HALF)
    scene.run()
    scene.suspend.trigger()
    inject(scene.world, b"z" * 254)
    scene.world.dom0.domctl.resumedomain(1)
    scene.run()
    assert scene.store._received == b""
    assert scene.store.read("data/key") == "value"


@pytest.mark.parametrize(("told", "left"), [("1", 1), ("0", 3), (None, 3)])
def test_what_xenstored_kept_of_the_same_domain_goes_if_it_can(
    scene: Scene, told: str | None, left: int
) -> None:
    """Watches and transactions of before the resume: two would be left of each."""
    if told is not None:
        scene.world.write(f"{HOME}/control/platform-feature-xs_reset_watches", told)
        scene.world.chmod(f"{HOME}/control", "n0", "r1")
        scene.world.chmod(f"{HOME}/control/platform-feature-xs_reset_watches", "n0", "r1")
    connection = scene.world.server.known[1].connection
    assert connection is not None
    for _ in range(2):
        scene.view.watch_add("data", "key", scene.event())
        scene.view.transaction_start()
        scene.resume()
        for watch in scene.store.watches():
            scene.view.watch_remove(watch)
        for transaction in scene.store.transactions():
            with pytest.raises(NtStatusError):
                scene.view.transaction_end(transaction, True)
    scene.view.watch_add("data", "key", scene.event())
    scene.view.transaction_start()
    assert (len(connection.watches), len(connection.transactions)) == (left, left)
