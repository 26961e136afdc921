"""The store client of a backend domain: every byte goes through its ring page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.layout import offsetof
from xenpv.abi.xs import XS
from xenpv.back.ringstore import HEADER, REQ, RSP, Events, RingPage, RingStore
from xenpv.back.store import BackStore
from xenpv.errors import StoreError
from xenpv.xen.domain import XENSTORE_PFN
from xenpv.xen.upcall import Dispatcher

PAGE = "xenstore_domain_interface"


@attrs.define(eq=False)
class Kernel:
    """What a domain without frontends has: a dispatcher, its ring page, the client over it."""

    world: World
    page: RingPage = attrs.field(init=False)
    ring: RingStore = attrs.field(init=False)
    store: BackStore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        guest = self.world.guest
        port = guest.hvm_param(HVM_PARAM.STORE_EVTCHN)
        self.page = RingPage(guest, Dispatcher(guest), XENSTORE_PFN, port)
        self.ring = self.page.taker = RingStore(self.page)
        self.store = BackStore(guest, self.ring, "kernel")


@pytest.fixture
def kernel(world: World) -> Kernel:
    return Kernel(world)


def index(world: World, field: str) -> int:
    return world.guest.load32(XENSTORE_PFN, offsetof(PAGE, field))


def test_a_request_lies_in_the_page_as_on_the_wire(kernel: Kernel) -> None:
    guest = kernel.world.guest
    before = index(kernel.world, "req_prod")
    kernel.store.write("data/x", "hello")
    raw = guest.read(XENSTORE_PFN, before % 1024, index(kernel.world, "req_prod") - before)
    # WRITE, the first number above 16 bits, no transaction, 12 bytes.
    assert raw == b"\x0b\0\0\0" + b"\0\0\1\0" + b"\0\0\0\0" + b"\x0c\0\0\0" + b"data/x\0hello"
    assert index(kernel.world, "req_cons") == index(kernel.world, "req_prod")
    assert index(kernel.world, "rsp_cons") == index(kernel.world, "rsp_prod")


def test_everything_that_a_backend_asks(kernel: Kernel) -> None:
    store, home = kernel.store, "/local/domain/1/data"
    store.write_all(home, {"a": "1", "b": "2"})
    assert store.read(f"{home}/a") == "1"
    assert store.directory(home) == ["a", "b"]
    store.mkdir(f"{home}/c")
    store.remove(f"{home}/b")
    store.remove(f"{home}/b")
    assert store.directory(home) == ["a", "c"]
    assert store.get_permissions(f"{home}/a") == ["n1"]
    store.set_permissions(f"{home}/a", ["n1", "r0"])
    assert store.get_permissions(f"{home}/a") == ["n1", "r0"]
    with store.begin() as tx_id:
        store.write(f"{home}/t", "3", tx_id)
        assert store.get(f"{home}/t") is None
    assert store.get(f"{home}/t") == "3"
    assert kernel.world.read(f"{home}/t") == "3"


def test_a_node_of_others_is_absent_like_one_that_is_none(kernel: Kernel) -> None:
    kernel.world.write("/secret/x", "1")
    kernel.world.chmod("/secret", "n0")
    kernel.world.chmod("/secret/x", "n0")
    store = kernel.store
    assert (store.get("/secret/x"), store.get("/secret/none"), store.get("data/none")) == (
        None, None, None,
    )  # fmt: skip
    assert store.directory("/secret") == []
    store.remove("/secret/x")
    assert kernel.world.read("/secret/x") == "1"
    with pytest.raises(StoreError, match="^EACCES: READ of '/secret/x'$"):
        store.read("/secret/x")
    with pytest.raises(StoreError, match="^EACCES: WRITE of '/secret/x'$"):
        store.write_all("/secret", {"x": "2"})


def test_large_values_and_directories_pass_a_small_ring(kernel: Kernel) -> None:
    home = "/local/domain/1/data"
    kernel.store.write(f"{home}/big", "x" * 1900)
    assert kernel.store.read(f"{home}/big") == "x" * 1900
    names = [f"n{number:03}-" + "y" * 60 for number in range(100)]
    for name in names:
        kernel.world.write(f"{home}/many/{name}", "")
    kernel.world.chmod(f"{home}/many", "n1")
    assert sorted(kernel.store.directory(f"{home}/many")) == names
    with pytest.raises(StoreError, match="^E2BIG"):
        kernel.store.write(f"{home}/big", "x" * 4096)


def test_watches_hand_out_paths_once_each(kernel: Kernel) -> None:
    home, seen = "/local/domain/1/data", list[str]()
    watch = kernel.store.watch(home, seen.append)
    kernel.world.loop.run()
    assert seen == [home]
    for value in ("1", "2", "3"):
        kernel.world.write(f"{home}/x", value)
    kernel.store.write(f"{home}/y", "own")
    kernel.world.loop.run()
    assert sorted(seen[1:]) == [f"{home}/x", f"{home}/y"]
    kernel.store.unwatch(watch)
    kernel.world.write(f"{home}/x", "4")
    kernel.world.loop.run()
    assert len(seen) == 3
    assert kernel.ring._tokens == {}


def test_events_that_wait_are_there_once() -> None:
    events = Events()
    assert [events.push(b"p", b"t"), events.push(b"p", b"t"), events.push(b"q", b"t")] == [
        True, False, True,
    ]  # fmt: skip
    assert (events.popleft(), events.push(b"p", b"t"), len(events)) == ((b"p", b"t"), True, 2)


@pytest.mark.parametrize("start", [0xFFFFFF00, 0xFFFFFFFF, 0x7FFFFFF0, 1023])
def test_indices_go_on_across_the_wrap(start: int) -> None:
    world = make()
    for field in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        world.guest.store32(XENSTORE_PFN, offsetof(PAGE, field), start)
    kernel = Kernel(world)
    for number in range(40):
        kernel.store.write("data/n", str(number))
        assert kernel.store.read("data/n") == str(number)
    assert (index(world, "req_prod") - start) % (1 << 32) > 1500
    world.hypervisor.close()


def test_requests_number_themselves_above_16_bits_and_wrap(kernel: Kernel) -> None:
    kernel.ring.requests = (1 << 32) - (1 << 16) - 1
    assert kernel.store.get("data") == ""
    before = index(kernel.world, "req_prod")
    assert kernel.store.get("data") == ""
    raw = kernel.world.guest.read(XENSTORE_PFN, (before + 4) % 1024, 4)
    assert raw == b"\0\0\1\0"


# An xenstored that says what a test wants


class FakeXenstored:
    """Serves the page in dom0: `answer(message)` is what follows each request, in bytes."""

    def __init__(self, world: World, answer: Callable[[bytes], bytes]) -> None:
        self.world = world
        self.answer = answer
        self.reads = 1024  # bytes at a time
        self.asked = b""
        guest, dom0 = world.guest, world.dom0
        world.daemon.unmap_ring(1)
        self.pfn = dom0.holes.alloc()
        dom0.gnttab.map(1, 1, self.pfn)
        self.port = dom0.evtchn.bind_interdomain(1, guest.hvm_param(HVM_PARAM.STORE_EVTCHN))
        self.task = world.dispatcher.bind(self.port, "fake", self.serve)
        self.waiting = b""

    def serve(self) -> None:
        buffer = bytearray(self.reads)
        pointer = ffi.from_buffer(buffer)
        count = lib.stream_get(self.world.dom0.kernel, self.pfn, *REQ, pointer, self.reads)
        self.asked += buffer[: max(0, count)]
        while len(self.asked) >= HEADER.size:
            size = HEADER.size + HEADER.unpack_from(self.asked)[3]
            if len(self.asked) < size:
                break
            self.waiting += self.answer(self.asked[:size])
            self.asked = self.asked[size:]
        done = self.say(self.waiting)
        self.waiting = self.waiting[done:]
        if count == self.reads:
            self.task.wake()
        if count > 0 or done:
            self.world.dom0.evtchn.send(self.port)

    def say(self, data: bytes) -> int:
        raw = ffi.from_buffer(data)
        return max(0, lib.stream_put(self.world.dom0.kernel, self.pfn, *RSP, raw, len(data)))


def message(kind: int, req_id: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, req_id, 0, len(payload)) + payload


REQ_ID = 0x10000
NOISE = message(XS.WATCH_EVENT, 0, b"/a\0B9\0") + message(XS.READ, 7, b"not yours")
ANSWERS = [
    # what xenstored says to a READ, what comes of it
    ("the value", message(XS.READ, REQ_ID, b"v"), "v"),
    ("an empty value", message(XS.READ, REQ_ID, b""), ""),
    ("others' events and replies first", NOISE + message(XS.READ, REQ_ID, b"v"), "v"),
    ("an error", message(XS.ERROR, REQ_ID, b"EACCES\0"), "EACCES: READ of 'x'"),
    ("an error without its NUL", message(XS.ERROR, REQ_ID, b"EBUSY"), "EBUSY: READ of 'x'"),
    ("an error without a name", message(XS.ERROR, REQ_ID, b""), "EIO: READ of 'x': an error without a known name"),
    ("an error of its own making", message(XS.ERROR, REQ_ID, b"EVIL\n\xff"), "EIO: READ of 'x': an error without a known name"),
    ("a reply of another type", message(XS.WRITE, REQ_ID, b"OK\0"), "EIO: READ of 'x': a reply of type 11, not 2"),
    ("a type that is none", message(0x7FFFFFFF, REQ_ID, b"v"), "EIO: READ of 'x': a reply of type 2147483647, not 2"),
    ("nothing", b"", "EIO: READ of 'x': xenstored does not answer"),
    ("half a header", message(XS.READ, REQ_ID, b"v")[:9], "EIO: READ of 'x': xenstored does not answer"),
    ("less than it says", message(XS.READ, REQ_ID, b"value")[:-1], "EIO: READ of 'x': xenstored does not answer"),
    ("a reply to another", message(XS.READ, REQ_ID + 1, b"v"), "EIO: READ of 'x': xenstored does not answer"),
    ("the number of a 16-bit client", message(XS.READ, 0, b"v"), "EIO: READ of 'x': xenstored does not answer"),
    ("a length beyond 4096", HEADER.pack(XS.READ, REQ_ID, 0, 4097), "EIO: READ of 'x': the ring is broken: a message of 4097 bytes, at most 4096"),
    ("a length of all ones", HEADER.pack(XS.READ, REQ_ID, 0, 0xFFFFFFFF), "EIO: READ of 'x': the ring is broken: a message of 4294967295 bytes, at most 4096"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "comes"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
def test_what_xenstored_says_is_checked(world: World, said: bytes, comes: str) -> None:
    FakeXenstored(world, lambda _: said)
    kernel = Kernel(world)
    if comes.startswith("E"):
        with pytest.raises(StoreError) as caught:
            kernel.store.read("x")
        assert str(caught.value) == comes
    else:
        assert kernel.store.read("x") == comes


TRANSACTIONS = [b"", b"x\0", b"-1\0", b"1 2\0", b"\xb2\0", b"4294967296\0", b"9" * 4096]


@pytest.mark.parametrize("said", TRANSACTIONS, ids=lambda said: repr(said[:12]))
def test_a_transaction_needs_a_number(world: World, said: bytes) -> None:
    FakeXenstored(world, lambda _: message(XS.TRANSACTION_START, REQ_ID, said))
    with pytest.raises(StoreError, match="^EIO: TRANSACTION_START: .* is no id$"):
        Kernel(world).store.transaction(lambda _: None)


def test_names_that_are_no_text_are_no_exception(world: World) -> None:
    FakeXenstored(world, lambda _: message(XS.DIRECTORY, REQ_ID, b"a\0\xff\xfe\0"))
    assert Kernel(world).store.directory("x") == ["a", "��"]


def test_a_directory_in_parts_that_never_ends_is_refused(world: World) -> None:
    def answer(asked: bytes) -> bytes:
        kind, req_id, _, _ = HEADER.unpack_from(asked)
        if kind == XS.DIRECTORY:
            return message(XS.ERROR, req_id, b"E2BIG\0")
        return message(kind, req_id, b"1\0")

    FakeXenstored(world, answer)
    with pytest.raises(StoreError, match="^EIO: DIRECTORY_PART of 'x': an empty part$"):
        Kernel(world).store.directory("x")


def test_a_full_ring_is_waited_for(world: World) -> None:
    """xenstored reads 100 bytes at a time."""
    fake = FakeXenstored(
        world, lambda asked: message(XS.WRITE, HEADER.unpack_from(asked)[1], b"OK\0")
    )
    fake.reads = 100
    kernel = Kernel(world)
    for number in range(5):
        kernel.store.write("x", chr(97 + number) * 4000)
    assert index(world, "req_prod") == 5 * (16 + 2 + 4000)


def test_an_index_out_of_bounds_ends_it(world: World) -> None:
    fake = FakeXenstored(world, lambda _: b"")
    kernel = Kernel(world)
    world.loop.run()
    world.dom0.store32(fake.pfn, offsetof(PAGE, "rsp_prod"), 5000)
    world.dom0.evtchn.send(fake.port)
    world.loop.run()
    assert kernel.page.broken == "xenstore ring: the peer's index runs past the ring"
    for _ in range(2):
        with pytest.raises(StoreError, match="^EIO: READ of 'x': the ring is broken"):
            kernel.store.get("x")
    world.dom0.store32(fake.pfn, offsetof(PAGE, "rsp_prod"), 0)
    with pytest.raises(StoreError, match="^EIO"):
        kernel.store.watch("x", lambda _: None)
    assert kernel.ring._tokens == {}


def test_a_request_index_out_of_bounds_ends_it(world: World) -> None:
    fake = FakeXenstored(world, lambda _: b"")
    kernel = Kernel(world)
    world.dom0.store32(fake.pfn, offsetof(PAGE, "req_cons"), 5000)
    with pytest.raises(StoreError, match="^EIO: WRITE of 'x': the ring is broken"):
        kernel.store.write("x", "1")


def test_events_of_no_watch_are_dropped(world: World) -> None:
    said = [
        message(XS.WATCH_EVENT, 0, payload)
        for payload in (b"/a\0B9\0", b"/a\0", b"", b"\0\0\0\0", b"/a\0TOK|1\0", b"/a\0B1")
    ]
    FakeXenstored(world, lambda _: b"".join(said) + message(XS.READ, REQ_ID, b"v"))
    kernel = Kernel(world)
    assert kernel.store.read("x") == "v"
    assert (kernel.page.dropped, len(kernel.ring.events)) == (6, 0)


@given(st.lists(st.binary(max_size=600), max_size=4), st.integers(0, 0xFFFFFFFF))
def test_garbage_raises_nothing_but_store_errors(said: list[bytes], start: int) -> None:
    world = make()
    try:
        for field in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
            world.guest.store32(XENSTORE_PFN, offsetof(PAGE, field), start)
        answers: Iterator[bytes] = iter(said)
        FakeXenstored(world, lambda _: next(answers, b""))
        kernel = Kernel(world)
        for ask in (
            lambda: kernel.store.get("x"),
            lambda: kernel.store.directory("x"),
            lambda: kernel.store.transaction(lambda _: None, tries=1),
            lambda: kernel.store.watch("x", lambda _: None),
        ):
            try:
                ask()
            except StoreError as error:
                assert error.name in ("EIO", "EAGAIN"), error
        world.loop.run()
        assert len(kernel.page._received) <= 4096 + 16
    finally:
        world.hypervisor.close()
