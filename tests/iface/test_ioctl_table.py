"""Every IOCTL code against not ready, rights, unknown, sizes and content, in that order."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs
import pytest

from tests.iface.conftest import Scene, make
from xenpv.iface import ioctl
from xenpv.iface.ioctl import Access, Irp, device_io_control, open_device
from xenpv.iface.process import Process

SUCCESS = 0
PENDING = 0x103
BUFFER_OVERFLOW = 0x8000_0005
UNSUCCESSFUL = 0xC000_0001
ACCESS_VIOLATION = 0xC000_0005
INVALID_HANDLE = 0xC000_0008
INVALID_PARAMETER = 0xC000_000D
INVALID_DEVICE_REQUEST = 0xC000_0010
NO_MEMORY = 0xC000_0017
ACCESS_DENIED = 0xC000_0022
TYPE_MISMATCH = 0xC000_0024
NAME_NOT_FOUND = 0xC000_0034
PATH_NOT_FOUND = 0xC000_003A
NOT_READY = 0xC000_00A3
NOT_SUPPORTED = 0xC000_00BB
CANCELLED = 0xC000_0120
INVALID_BUFFER_SIZE = 0xC000_0206
NOT_FOUND = 0xC000_0225

# function: name, code as a number, bytes in, bytes out; None where it depends
CODES = {
    0x800: ("STORE_READ", 0x222000, None, None),
    0x801: ("STORE_WRITE", 0x222004, None, 0),
    0x802: ("STORE_DIRECTORY", 0x222008, None, None),
    0x803: ("STORE_REMOVE", 0x22200C, None, 0),
    0x804: ("STORE_SET_PERMISSIONS", 0x222010, 24, 0),
    0x805: ("STORE_ADD_WATCH", 0x222014, 24, 8),
    0x806: ("STORE_REMOVE_WATCH", 0x222018, 8, 0),
    0x810: ("EVTCHN_BIND_INTERDOMAIN", 0x222040, 24, 4),
    0x811: ("EVTCHN_BIND_UNBOUND", 0x222044, 16, 4),
    0x812: ("EVTCHN_CLOSE", 0x222048, 4, 0),
    0x813: ("EVTCHN_NOTIFY", 0x22204C, 4, 0),
    0x814: ("EVTCHN_UNMASK", 0x222050, 4, 0),
    0x820: ("GNTTAB_PERMIT_FOREIGN_ACCESS", 0x222083, None, None),
    0x821: ("GNTTAB_REVOKE_FOREIGN_ACCESS", 0x222084, None, None),
    0x822: ("GNTTAB_MAP_FOREIGN_PAGES", 0x22208B, None, None),
    0x823: ("GNTTAB_UNMAP_FOREIGN_PAGES", 0x22208C, None, None),
    0x824: ("GNTTAB_PERMIT_FOREIGN_ACCESS_V2", 0x222093, 32, 12),
    0x825: ("GNTTAB_REVOKE_FOREIGN_ACCESS_V2", 0x222094, 8, 0),
    0x826: ("GNTTAB_MAP_FOREIGN_PAGES_V2", 0x22209B, 24, 8),
    0x827: ("GNTTAB_UNMAP_FOREIGN_PAGES_V2", 0x22209C, 8, 0),
    0x830: ("SUSPEND_GET_COUNT", 0x2220C0, 0, 4),
    0x831: ("SUSPEND_REGISTER", 0x2220C4, 8, 8),
    0x832: ("SUSPEND_DEREGISTER", 0x2220C8, 8, 0),
    0x840: ("SHAREDINFO_GET_TIME", 0x222100, 0, 12),
    0x84F: ("LOG", 0x22213C, None, 0),
}
LEGACY = (0x820, 0x821, 0x822, 0x823)
EXACT = [function for function, row in CODES.items() if row[2] is not None]


@attrs.define(eq=False)
class Caller:
    """A process with the device open."""

    scene: Scene
    process: Process
    handle: int

    def __call__(self, function: int, data: bytes = b"", out: int = 0, **named: int) -> Irp:
        code = CODES[function][1]
        return device_io_control(self.process, self.handle, code, data, out, **named)

    def text(self, data: bytes) -> int:
        address = self.process.alloc(len(data))
        self.process.write(address, data)
        return address

    def other(self) -> Caller:
        """Another file of the same process."""
        return Caller(self.scene, self.process, open_device(self.scene.iface, self.process))

    def event(self) -> int:
        return self.process.create_event()


def caller_of(scene: Scene) -> Caller:
    process = scene.iface.process("caller")
    return Caller(scene, process, open_device(scene.iface, process))


@pytest.fixture
def call() -> Iterator[Caller]:
    scene = make()
    scene.xen.create(name="peer").start()
    scene.guest.wmi.add_session("test").SetValue("data/a", "value")
    yield caller_of(scene)
    scene.xen.close()


def test_the_table_is_the_header() -> None:
    assert {row.function: (row.name, row.code) for row in ioctl.IOCTLS} == {
        function: row[:2] for function, row in CODES.items()
    }


@pytest.mark.parametrize("function", CODES)
def test_not_ready_comes_first(call: Caller, function: int) -> None:
    handle = open_device(call.scene.iface, call.process, Access.READ)
    call.scene.iface.to_d3()
    for data, out in ((b"", 0), (bytes(3000), 3000)):
        assert call(function, data, out).status == NOT_READY
        assert Caller(call.scene, call.process, handle)(function, data, out).status == NOT_READY
    assert device_io_control(call.process, call.handle, 0x123456).status == NOT_READY


@pytest.mark.parametrize("access", [Access.NONE, Access.READ, Access.WRITE])
@pytest.mark.parametrize("function", CODES)
def test_a_handle_needs_both_rights(call: Caller, function: int, access: Access) -> None:
    handle = open_device(call.scene.iface, call.process, access)
    assert Caller(call.scene, call.process, handle)(function, bytes(3)).status == ACCESS_DENIED
    assert device_io_control(call.process, handle, 0x123456).status == ACCESS_DENIED


@pytest.mark.parametrize("function", CODES)
def test_a_code_with_other_bits_is_unknown(call: Caller, function: int) -> None:
    code = CODES[function][1]
    for other in (code ^ 1, code ^ 2, code | 0x4000, code | 0x8000, code ^ 0x10000):
        assert device_io_control(call.process, call.handle, other).status == INVALID_DEVICE_REQUEST


@pytest.mark.parametrize("function", [0x7FF, 0x807, 0x80F, 0x815, 0x828, 0x833, 0x841, 0x850])
def test_an_unknown_code(call: Caller, function: int) -> None:
    code = 0x220000 | function * 4
    assert device_io_control(call.process, call.handle, code).status == INVALID_DEVICE_REQUEST


@pytest.mark.parametrize("function", LEGACY)
def test_the_legacy_codes_are_not_supported(call: Caller, function: int) -> None:
    for data, out in ((b"", 0), (bytes(24), 12), (bytes(4), 0)):
        assert call(function, data, out).status == NOT_SUPPORTED


@pytest.mark.parametrize("function", EXACT)
def test_sizes_that_are_wrong(call: Caller, function: int) -> None:
    _, _, into, out = CODES[function]
    wrong = [(into + 1, out), (0, out), (into, out + 1), (4096, out)]
    if into:
        wrong.append((into - 1, out))
    else:
        wrong.remove((0, out))
    if out:
        wrong += [(into, 0), (into, out - 1)]
    for size, room in wrong:
        # A byte of 1 makes the counts in 0x804, 0x824 and 0x826 one page or entry.
        data = {
            0x804: struct.pack("<QIIHHI", 1, 1, 1, 0, 0, 0),
            0x824: struct.pack("<H6xQ4I", 2, 0, 1, 0, 0, 0),
            0x826: struct.pack("<H2x5I", 2, 1, 0, 0, 0, 9),
        }.get(function, b"").ljust(size, b"\0")[:size]
        status = call(function, data, room).status
        if function == 0x826 and size == 4096:
            assert status == INVALID_PARAMETER  # 1019 references, not one
        else:
            assert status == INVALID_BUFFER_SIZE, (size, room)


@pytest.mark.parametrize("function", [0x800, 0x801, 0x802, 0x803, 0x84F])
def test_a_string_is_needed(call: Caller, function: int) -> None:
    assert call(function).status == INVALID_BUFFER_SIZE
    if CODES[function][3] == 0:
        assert call(function, b"data/a\0x\0", 1).status == INVALID_BUFFER_SIZE


@pytest.mark.parametrize(
    "text",
    [b"data/a", b"data/\x01a\0", b"data/\x7f\0", b"d\xc3\xa9\0", b"data/a\n\0", b"data/a\t\0"],
)
@pytest.mark.parametrize("function", [0x800, 0x801, 0x802, 0x803])
def test_a_string_must_be_printable_and_end(call: Caller, function: int, text: bytes) -> None:
    assert call(function, text).status == INVALID_PARAMETER


def test_what_follows_the_nul_is_not_looked_at(call: Caller) -> None:
    irp = call(0x800, b"data/a\0\x01\xff", 100)
    assert (irp.status, irp.output, irp.information) == (SUCCESS, b"value\0", 6)


@pytest.mark.parametrize(
    ("function", "path", "answer"),
    [
        (0x800, b"data/a\0", b"value\0"),
        (0x802, b"data\0", b"a\0\0"),
        (0x800, b"data/empty\0", b"\0"),
    ],
)
def test_the_two_call_protocol(call: Caller, function: int, path: bytes, answer: bytes) -> None:
    call.scene.guest.wmi.session(0).SetValue("data/empty", "")
    call.scene.guest.wmi.session(0).RemoveValue("data/empty") if function == 0x802 else None
    irp = call(function, path, 0)
    assert (irp.status, irp.information, irp.output) == (BUFFER_OVERFLOW, len(answer), b"")
    for room in range(1, len(answer)):
        assert call(function, path, room).status == INVALID_PARAMETER
    for room in (len(answer), 4096):
        irp = call(function, path, room)
        assert (irp.status, irp.information, irp.output) == (SUCCESS, len(answer), answer)


@pytest.mark.parametrize(
    ("function", "data", "expected"),
    [
        (0x800, b"data/none\0", NAME_NOT_FOUND),
        (0x800, b"/local/domain/0/backend\0", ACCESS_DENIED),
        (0x800, b"two words\0", INVALID_PARAMETER),
        (0x800, b"/" + b"x" * 3071 + b"\0", INVALID_BUFFER_SIZE),
        (0x800, b"x" * 2048 + b"\0", INVALID_BUFFER_SIZE),
        (0x802, b"data/a\0", PATH_NOT_FOUND),
        (0x802, b"data/none\0", NAME_NOT_FOUND),
        (0x803, b"data/a\0", SUCCESS),
        (0x803, b"memory/target\0", ACCESS_DENIED),
        (0x801, b"data/a\0new\0\0", SUCCESS),
        (0x801, b"data/a\0new\0", SUCCESS),
        (0x801, b"data/a\0\0", SUCCESS),
        (0x801, b"data/a\0", INVALID_PARAMETER),
        (0x801, b"data/a\0new", INVALID_PARAMETER),
        (0x801, b"data/a\0n\x02w\0", INVALID_PARAMETER),
        (0x801, b"data/a\0" + b"x" * 1023 + b"\0", SUCCESS),
        (0x801, b"data/a\0" + b"x" * 1024 + b"\0", INVALID_BUFFER_SIZE),
        (0x801, b"control/new\0x\0", ACCESS_DENIED),
        (0x84F, b"hello\0", SUCCESS),
        (0x84F, b"hello\r\n\0", SUCCESS),
        (0x84F, b"x" * 255 + b"\0", SUCCESS),
        (0x84F, b"x" * 256, INVALID_PARAMETER),
        (0x84F, b"x" * 256 + b"\0", INVALID_BUFFER_SIZE),
        (0x84F, b"a\tb\0", INVALID_PARAMETER),
        (0x84F, b"caf\xe9\0", INVALID_PARAMETER),
    ],
)
def test_content_of_strings(call: Caller, function: int, data: bytes, expected: int) -> None:
    assert call(function, data, 100 if function in (0x800, 0x802) else 0).status == expected


def test_log_trims_what_ends_a_line(call: Caller) -> None:
    call(0x84F, b"one\ntwo\r\n\r\n\0")
    call.scene.xen.run()
    assert "xeniface|USER: one\ntwo\r\nxeniface" not in call.scene.guest.console.text
    assert "xeniface|USER: one" in call.scene.guest.console.text


STORE_ERRORS = [
    ("ENOENT", 0xC000_0034), ("EACCES", 0xC000_0022), ("EINVAL", 0xC000_000D),
    ("EEXIST", 0xC000_022B), ("EAGAIN", 0xC000_022D), ("EQUOTA", 0xC000_0044),
    ("ENOSPC", 0xC000_009A), ("ENOMEM", 0xC000_0017), ("EISDIR", 0xC000_00BA),
    ("EIO", 0xC000_00E9), ("ENOTEMPTY", 0xC000_0101), ("ENOSYS", 0xC000_0002),
    ("EROFS", 0xC000_00A2), ("EBUSY", 0xC000_00AE), ("EISCONN", 0xC000_00B2),
    ("E2BIG", 0xC000_0001), ("EPERM", 0xC000_0001),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), STORE_ERRORS)
def test_what_the_store_says(
    call: Caller, monkeypatch: pytest.MonkeyPatch, name: str, expected: int
) -> None:
    address, event = call.text(b"data/a\0"), call.event()
    before = len(call.scene.guest.created.domain.tasks)
    for operation in ("read", "write", "directory", "remove", "set_permissions", "watch_add"):
        call.scene.refuse(monkeypatch, operation, name)
    assert call(0x800, b"data/a\0", 9).status == expected
    assert call(0x801, b"data/a\0x\0").status == expected
    assert call(0x802, b"data\0", 9).status == expected
    assert call(0x803, b"data/a\0").status == expected
    assert call(0x804, struct.pack("<QIIHHI", address, 7, 1, 1, 0, 0)).status == expected
    assert call(0x805, struct.pack("<QI4xQ", address, 7, event), 8).status == expected
    assert call.scene.iface.ioctl_store.watches == []
    assert len(call.scene.guest.created.domain.tasks) == before


@pytest.mark.parametrize(
    ("length", "entries", "expected"),
    [
        (7, [(1, 0)], SUCCESS),
        (7, [(1, 0), (0, 3), (2, 1), (3, 2)], SUCCESS),
        (0, [(1, 0)], INVALID_PARAMETER),
        (3073, [(1, 0)], INVALID_PARAMETER),
        (7, [(1, 4)], INVALID_PARAMETER),
        (7, [(1, 0), (2, 0x8000_0000)], INVALID_PARAMETER),
        (7, [(1, 0)] * 256, INVALID_PARAMETER),
        (5, [(1, 0)], SUCCESS),
        (3072, [(1, 0)], SUCCESS),
    ],
)
def test_set_permissions(
    call: Caller, length: int, entries: list[tuple[int, int]], expected: int
) -> None:
    address = call.text(b"data/a\0".ljust(4096, b"x"))
    data = struct.pack("<QII", address, length, len(entries))
    data += b"".join(struct.pack("<HHI", domid, 0xDEAD, mask) for domid, mask in entries)
    assert call(0x804, data).status == expected
    if len(entries) == 4:
        permissions = call.scene.guest.bus.store.get_permissions("data/a")
        assert permissions == ["n1", "b0", "r2", "w3"]


@pytest.mark.parametrize("function", [0x804, 0x805])
def test_a_path_that_is_not_there_faults(call: Caller, function: int) -> None:
    event = call.event()
    for address in (0, 0x1234, call.text(b"x") + 4096, 0xFFFF_8000_0000_0000):
        data = {
            0x804: struct.pack("<QIIHHI", address, 7, 1, 1, 0, 0),
            0x805: struct.pack("<QI4xQ", address, 7, event),
        }[function]
        assert call(function, data, CODES[function][3]).status == ACCESS_VIOLATION


def _with_event(call: Caller, function: int, event: int) -> tuple[bytes, int]:
    path = call.text(b"data/a\0")
    data = {
        0x805: struct.pack("<QI4xQ", path, 7, event),
        0x810: struct.pack("<H2xIB7xQ", 2, 1, 0, event),
        0x811: struct.pack("<HB5xQ", 2, 0, event),
        0x831: struct.pack("<Q", event),
    }[function]
    return data, CODES[function][3]


@pytest.mark.parametrize("function", [0x805, 0x810, 0x811, 0x831])
def test_a_bad_event_handle_gives_the_handles_status(call: Caller, function: int) -> None:
    closed = call.event()
    call.process.close_handle(closed)
    stranger = call.scene.iface.process("stranger").create_event()
    for handle, expected in (
        (0, INVALID_HANDLE), (closed, INVALID_HANDLE), (1 << 40, INVALID_HANDLE),
        (call.handle, TYPE_MISMATCH), (stranger + 400, INVALID_HANDLE),
    ):  # fmt: skip
        assert call(function, *_with_event(call, function, handle)).status == expected
    assert call.scene.iface.leftovers() == [r"session XP0001 XENBUS IFACE\Session_test_0"]


@pytest.mark.parametrize(("length", "expected"), [(0, INVALID_PARAMETER), (3073, INVALID_PARAMETER), (7, SUCCESS), (3072, SUCCESS)])  # fmt: skip
def test_length_of_the_path_of_a_watch(call: Caller, length: int, expected: int) -> None:
    path = call.text(b"data/a\0".ljust(4096, b"x"))
    data = struct.pack("<QI4xQ", path, length, call.event())
    assert call(0x805, data, 8).status == expected


def test_a_watch_sets_its_event_until_its_own_file_removes_it(call: Caller) -> None:
    event = call.event()
    irp = call(0x805, *_with_event(call, 0x805, event))
    assert (irp.status, irp.information) == (SUCCESS, 8)
    call.scene.xen.run()
    assert call.process.event(event).sets == 1
    call.scene.write("data/a", "new")
    call.scene.xen.run()
    assert call.process.event(event).sets == 2
    for other in (call.other(), caller_of(call.scene)):
        assert other(0x806, irp.output).status == NOT_FOUND
    assert call(0x806, bytes(8)).status == NOT_FOUND
    assert call(0x806, irp.output).status == SUCCESS
    assert call(0x806, irp.output).status == NOT_FOUND
    call.scene.write("data/a", "newer")
    call.scene.xen.run()
    assert call.process.event(event).sets == 2


def test_ports_of_another_file_are_unknown(call: Caller) -> None:
    port = call(0x811, *_with_event(call, 0x811, call.event())).output
    assert len(port) == 4
    for other in (call.other(), caller_of(call.scene)):
        assert other(0x812, port).status == NOT_FOUND
        assert other(0x813, port).status == NOT_FOUND
        assert other(0x814, port).status == INVALID_PARAMETER
    for function, expected in ((0x813, SUCCESS), (0x814, SUCCESS), (0x812, SUCCESS)):
        assert call(function, port).status == expected
    assert [call(function, port).status for function in (0x812, 0x813, 0x814)] == [
        NOT_FOUND, NOT_FOUND, INVALID_PARAMETER,
    ]  # fmt: skip
    store = struct.pack("<I", call.scene.guest.bus.store.channel.port)
    assert call(0x812, store).status == NOT_FOUND


@pytest.mark.parametrize(
    ("domid", "port"), [(2, 0xFFFF_FFFF), (2, 4000), (99, 1), (0x7FF0, 1), (2, 0)]
)
def test_a_channel_that_cannot_be_opened(call: Caller, domid: int, port: int) -> None:
    data = struct.pack("<H2xIB7xQ", domid, port, 0, call.event())
    before = len(call.scene.guest.created.domain.tasks)
    assert call(0x810, data, 4).status == UNSUCCESSFUL
    assert len(call.scene.guest.created.domain.tasks) == before


def test_masked_until_it_is_unmasked(call: Caller) -> None:
    event, second = call.event(), call.event()
    port = call(0x811, struct.pack("<HB5xQ", 1, 1, event), 4).output
    number = int.from_bytes(port, "little")
    other = call(0x810, struct.pack("<H2xIB7xQ", 1, number, 0, second), 4)
    assert other.status == SUCCESS
    call.scene.xen.run()
    assert call.process.event(event).sets == 0
    assert call.process.event(second).sets == 1
    for _ in range(3):
        assert call(0x813, other.output).status == SUCCESS
    call.scene.xen.run()
    assert call.process.event(event).sets == 0
    assert call(0x814, port).status == SUCCESS
    call.scene.xen.run()
    assert call.process.event(event).sets == 1
    for expected in (2, 3):
        call(0x813, other.output)
        call.scene.xen.run()
        assert call.process.event(event).sets == expected


def test_suspend_events(call: Caller) -> None:
    assert call(0x830, b"", 4).output == bytes(4)
    context = call(0x831, struct.pack("<Q", call.event()), 8).output
    for other in (call.other(), caller_of(call.scene)):
        assert other(0x832, context).status == NOT_FOUND
    assert call(0x832, bytes(8)).status == NOT_FOUND
    assert call(0x832, context).status == SUCCESS
    assert call(0x832, context).status == NOT_FOUND


def test_a_last_registration_of_another_file_is_not_found(call: Caller) -> None:
    """The driver looks at what the last entry is, and not whose."""
    other = call.other()
    other(0x831, struct.pack("<Q", call.event()), 8)
    context = other(0x831, struct.pack("<Q", call.event()), 8).output
    assert call(0x832, context).status == NOT_FOUND
    assert other(0x832, context).status == SUCCESS


def permit(domid: int = 2, address: int = 0, pages: int = 1, flags: int = 0, offset: int = 0, port: int = 0) -> bytes:  # fmt: skip
    return struct.pack("<H6xQ4I", domid, address, pages, flags, offset, port)


@pytest.mark.parametrize(
    ("data", "out", "expected"),
    [
        (permit(), 12, PENDING),
        (permit(pages=3), 20, PENDING),
        (permit(pages=0), 8, INVALID_PARAMETER),
        (permit(pages=1_048_577), 8 + 4 * 1_048_577, INVALID_PARAMETER),
        (permit(pages=1_048_576), 8 + 4 * 1_048_576, NO_MEMORY),
        (permit(pages=2), 12, INVALID_BUFFER_SIZE),
        (permit(pages=1, flags=2, offset=4095), 12, PENDING),
        (permit(pages=1, flags=2, offset=4096), 12, INVALID_PARAMETER),
        (permit(pages=1, flags=0, offset=4096), 12, PENDING),
        (permit(pages=1, flags=1), 12, PENDING),
        (permit(pages=1, flags=4, port=77), 12, PENDING),
        (permit(address=0x5000), 12, ACCESS_VIOLATION),
    ],
)
def test_permit(call: Caller, data: bytes, out: int, expected: int) -> None:
    irp = call(0x824, data, out)
    assert irp.status == expected
    assert len(irp.output) == (out if expected == PENDING else 0)
    permitted = (out - 8) // 4 if expected == PENDING else 0
    assert call.scene.iface.pages.locked == permitted
    call.process.exit()
    assert irp.status == (CANCELLED if expected == PENDING else expected)
    assert call.scene.iface.pages.locked == 0


def test_a_users_buffer_is_granted_where_it_lies(call: Caller) -> None:
    address = call.process.alloc(3 * 4096)
    irp = call(0x824, permit(address=address + 4096, pages=2, flags=2, offset=5), 16)
    assert irp.status == PENDING
    assert irp.output[:8] == struct.pack("<Q", address + 4096)
    call.process.write(address + 4096, b"x" * 8)
    assert call(0x824, permit(address=address + 4096, pages=2), 16).status == INVALID_PARAMETER
    assert call(0x824, permit(address=address, pages=1), 12).status == PENDING
    # Another process has other memory at the same address.
    other = caller_of(call.scene)
    assert other.process.alloc(3 * 4096) == address
    assert other(0x825, irp.output[:8]).status == NOT_FOUND
    assert other(0x824, permit(address=address + 4096), 12).status == PENDING
    assert call(0x825, irp.output[:8]).status == SUCCESS
    assert irp.status == SUCCESS
    assert call.process.read(address + 4096, 8) == b"xxxxx\0xx"
    assert call(0x825, irp.output[:8]).status == NOT_FOUND


def test_a_read_only_buffer_is_granted_read_only(call: Caller) -> None:
    address = call.process.alloc(4096, writable=False)
    assert call(0x824, permit(address=address), 12).status == ACCESS_VIOLATION
    assert call(0x824, permit(address=address, flags=1), 12).status == PENDING


@pytest.mark.parametrize(
    ("pages", "refs", "flags", "offset", "extra", "expected"),
    [
        (1, 1, 0, 0, b"", PENDING),
        (2, 2, 2, 8191, b"", PENDING),
        (2, 2, 2, 8192, b"", INVALID_PARAMETER),
        (0, 1, 0, 0, b"", INVALID_PARAMETER),
        (1, 2, 0, 0, b"", INVALID_PARAMETER),
        (2, 1, 0, 0, b"", INVALID_PARAMETER),
        (1, 1, 0, 0, b"x", INVALID_BUFFER_SIZE),
        (0, 0, 0, 0, b"", INVALID_BUFFER_SIZE),
    ],
)
def test_map(
    call: Caller, pages: int, refs: int, flags: int, offset: int, extra: bytes, expected: int
) -> None:
    peer = call.scene.xen.guests[1].xencontrol()
    _, granted = peer.gnttab_permit_foreign_access(1, 2)
    data = struct.pack(f"<H2x4I{refs}I", 2, pages, flags, offset, 0, *granted[:refs]) + extra
    irp = call(0x826, data, 8)
    assert irp.status == expected
    if expected != PENDING:
        return
    for other in (caller_of(call.scene),):
        assert other(0x827, irp.output).status == NOT_FOUND
    assert call(0x827, bytes(8)).status == NOT_FOUND
    assert call(0x827, irp.output).status == SUCCESS
    assert irp.status == SUCCESS
    assert call(0x827, irp.output).status == NOT_FOUND


@pytest.mark.parametrize(
    ("domid", "ref", "flags", "expected"),
    [(2, 60, 0, UNSUCCESSFUL), (77, 60, 0, UNSUCCESSFUL), (2, 1 << 20, 0, UNSUCCESSFUL)],
)
def test_a_map_that_fails_maps_nothing(
    call: Caller, domid: int, ref: int, flags: int, expected: int
) -> None:
    peer = call.scene.xen.guests[1].xencontrol()
    _, granted = peer.gnttab_permit_foreign_access(1, 1)
    data = struct.pack("<H2x6I", domid, 2, flags, 0, 0, granted[0], ref)
    assert call(0x826, data, 8).status == expected
    peer.process.exit()
    assert peer.process.alive is False
    assert call.scene.xen.guests[1].iface.pages.locked == 0


def test_a_read_only_grant_can_only_be_mapped_read_only(call: Caller) -> None:
    peer = call.scene.xen.guests[1].xencontrol()
    _, refs = peer.gnttab_permit_foreign_access(1, 1, flags=1)
    assert call(0x826, struct.pack("<H2x5I", 2, 1, 0, 0, 0, *refs), 8).status == UNSUCCESSFUL
    irp = call(0x826, struct.pack("<H2x5I", 2, 1, 3, 7, 0, *refs), 8)
    assert irp.status == PENDING
    # The byte at the notify offset cannot be written: that is logged, and no more.
    assert call(0x827, irp.output).status == SUCCESS
    call.scene.xen.run()
    assert "notify offset 0x7" in call.scene.guest.console.text


def test_a_page_that_is_mapped_still_is_not_used_again(call: Caller) -> None:
    """XSA-396: revoked and freed here, held by the peer."""
    irp = call(0x824, permit(), 12)
    address, ref = struct.unpack("<QI", irp.output)
    peer = call.scene.xen.guests[1].xencontrol()
    mapped = peer.gnttab_map_foreign_pages(1, [ref])
    assert call(0x825, irp.output[:8]).status == SUCCESS
    assert call.scene.iface.gnttab.mapped_still != []
    pfn = call.scene.iface.gnttab.mapped_still[0][1]
    again = [call(0x824, permit(), 12) for _ in range(3)]
    assert ref not in [struct.unpack("<QI", one.output)[1] for one in again]
    assert pfn not in [one for ctx in call.scene.iface.gnttab.contexts for one in ctx.pfns]
    peer.process.write(mapped, b"still here")
    peer.gnttab_unmap_foreign_pages(mapped)
    call.scene.iface.gnttab.retry_revokes()
    assert call.scene.iface.gnttab.mapped_still == []
    assert call.scene.iface.pages.locked == 3
    assert call(0x825, struct.pack("<Q", address)).status == NOT_FOUND


def test_order_of_a_revoke_and_of_an_unmap(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoke: byte, port, grants. Unmap: byte, unmap, port."""
    order: list[str] = []
    bus = call.scene.guest.bus

    def note(what: str, target: object, name: str) -> None:
        real = getattr(target, name)

        def noted(*args: object, **named: object) -> object:
            order.append(what)
            return real(*args, **named)

        monkeypatch.setattr(target, name, noted)

    port = call(0x811, *_with_event(call, 0x811, call.event())).output
    number = int.from_bytes(port, "little")
    grant = call(0x824, permit(flags=6, offset=1, port=number), 12)
    peer = call.scene.xen.guests[1].xencontrol()
    _, refs = peer.gnttab_permit_foreign_access(1, 1)
    mapped = call(0x826, struct.pack("<H2x5I", 2, 1, 6, 1, number, *refs), 8)
    note("byte", bus.domain, "write")
    note("port", bus.evtchn, "send")
    note("grant", bus.gnttab, "revoke_foreign_access")
    note("unmap", call.process, "unmap")
    assert call(0x825, grant.output[:8]).status == SUCCESS
    assert order == ["byte", "port", "unmap", "grant"]
    order.clear()
    assert call(0x827, mapped.output).status == SUCCESS
    assert order == ["byte", "unmap", "port"]


def test_a_notify_that_fails_is_only_logged(call: Caller) -> None:
    irp = call(0x824, permit(flags=4, port=4000), 12)
    assert call(0x825, irp.output[:8]).status == SUCCESS
    call.scene.xen.run()
    assert "notify port 4000: NOT_FOUND" in call.scene.guest.console.text


@pytest.mark.parametrize("how", ["cancel", "thread", "process"])
def test_a_pending_request_is_cancelled(call: Caller, how: str) -> None:
    mine = call(0x824, permit(), 12, thread=7)
    other = call(0x824, permit(), 12, thread=8)
    if how == "cancel":
        mine.cancel()
        mine.cancel()
    elif how == "thread":
        call.process.exit_thread(7)
    else:
        call.process.exit()
    assert mine.status == CANCELLED
    assert other.status == (CANCELLED if how == "process" else PENDING)


def test_pages_and_ports_come_back(call: Caller) -> None:
    """More than the guest has, one after the other."""
    for _ in range(30):
        irp = call(0x824, permit(pages=1000), 8 + 4 * 1000)
        assert irp.status == PENDING
        assert call(0x825, irp.output[:8]).status == SUCCESS
    assert call.scene.guest.bus.gnttab.permitted == 0
    channels = len(call.scene.guest.bus.evtchn.channels())
    ports = set()
    for _ in range(30):
        port = call(0x811, *_with_event(call, 0x811, call.event())).output
        assert call(0x812, port).status == SUCCESS
        call.scene.xen.run()
        ports.add(port)
    assert len(ports) == 1
    assert len(call.scene.guest.bus.evtchn.channels()) == channels


def test_closing_the_file_leaves_the_grant(call: Caller) -> None:
    irp = call(0x824, permit(), 12)
    call.process.close_handle(call.handle)
    assert irp.status == PENDING
    call.process.exit()
    assert irp.status == CANCELLED


def test_d3_frees_all_but_grants(call: Caller) -> None:
    irp = call(0x824, permit(), 12)
    port = call(0x811, *_with_event(call, 0x811, call.event())).output
    call(0x805, *_with_event(call, 0x805, call.event()))
    call(0x831, *_with_event(call, 0x831, call.event()))
    call.scene.iface.to_d3()
    assert irp.status == PENDING
    call.scene.iface.to_d0()
    assert [text.split()[0] for text in call.scene.iface.leftovers()] == ["grant", "session"]
    assert call(0x813, port).status == NOT_FOUND
    assert call(0x825, irp.output[:8]).status == SUCCESS


def test_the_last_of_two_handles_frees(call: Caller) -> None:
    child = call.scene.iface.process("child")
    second = call.process.duplicate_handle(call.handle, child)
    port = call(0x811, *_with_event(call, 0x811, call.event())).output
    call.process.close_handle(call.handle)
    assert Caller(call.scene, child, second)(0x813, port).status == SUCCESS
    child.exit()
    assert call.scene.iface.evtchn.channels == []


def test_a_handle_that_is_none(call: Caller) -> None:
    assert device_io_control(call.process, 4, 0x222000).status == INVALID_HANDLE
    assert device_io_control(call.process, call.event(), 0x222000).status == TYPE_MISMATCH
    call.process.close_handle(call.handle)
    assert call(0x840, b"", 12).status == INVALID_HANDLE
