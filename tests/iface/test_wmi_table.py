"""Every WMI method and query against every situation that has a status of its own."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from tests.iface.conftest import HOME, SESSION, Scene, data_at
from xenpv.bus.ntstatus import NtStatusError
from xenpv.iface import wmi, wmi_session, wnode
from xenpv.iface.device import PDO_REVISION

SUCCESS = 0
INVALID_DEVICE_REQUEST = 0xC000_0010
INSUFFICIENT_RESOURCES = 0xC000_009A
INSTANCE_NOT_FOUND = 0xC000_0296
ITEMID_NOT_FOUND = 0xC000_0297
OUT_OF_SEQUENCE = 0xC000_042A
NOT_SUPPORTED = 0xC000_00BB
BUFFER_TOO_SMALL = 0xC000_0023
INVALID_BUFFER_SIZE = 0xC000_0206
RETRY = 0xC000_022D
ACCESS_DENIED = 0xC000_0022
NAME_NOT_FOUND = 0xC000_0034
PATH_NOT_FOUND = 0xC000_003A
INVALID_PARAMETER = 0xC000_000D
UNSUCCESSFUL = 0xC000_0001

# method: name, arguments that work
METHODS = {
    1: ("GetValue", ("data/a",)),
    2: ("GetChildren", ("data",)),
    3: ("SetValue", ("data/a", "2")),
    4: ("EndSession", ()),
    5: ("SetWatch", ("data",)),
    6: ("RemoveWatch", ("data",)),
    7: ("RemoveValue", ("data/a",)),
    8: ("Log", ("hello",)),
    9: ("StartTransaction", ()),
    10: ("CommitTransaction", ()),
    11: ("AbortTransaction", ()),
    12: ("GetFirstChild", ("data",)),
    13: ("GetNextSibling", ("data/a",)),
}
ALL = sorted(METHODS)
TAKES_TEXT = [1, 2, 3, 5, 6, 7, 8, 12, 13]

STORE_ERRORS = [
    ("ENOENT", 0xC000_0034), ("EACCES", 0xC000_0022), ("EINVAL", 0xC000_000D),
    ("EEXIST", 0xC000_022B), ("EAGAIN", 0xC000_022D), ("EQUOTA", 0xC000_0044),
    ("ENOSPC", 0xC000_009A), ("ENOMEM", 0xC000_0017), ("EISDIR", 0xC000_00BA),
    ("EIO", 0xC000_00E9), ("ENOTEMPTY", 0xC000_0101), ("ENOSYS", 0xC000_0002),
    ("EROFS", 0xC000_00A2), ("EBUSY", 0xC000_00AE), ("EISCONN", 0xC000_00B2),
    ("E2BIG", 0xC000_0001), ("EPERM", 0xC000_0001), ("EWHATEVER", 0xC000_0001),
]  # fmt: skip
STORE_OPERATION = {
    1: "read", 2: "directory", 3: "write", 7: "remove", 9: "transaction_start",
    10: "transaction_end", 11: "transaction_end", 12: "directory", 13: "directory",
}  # fmt: skip


@pytest.fixture
def ready(scene: Scene) -> Scene:
    """One session; data/a is 1."""
    scene.guest.wmi.add_session("test").SetValue("data/a", "1")
    return scene


def run(scene: Scene, method: int, *, instance: str = SESSION) -> int:
    return scene.wmi(method, *METHODS[method][1], instance=instance)[0]


def test_the_methods_are_those_of_the_mof() -> None:
    assert {number: row.name for number, row in wmi.SESSION_METHODS.items()} == {
        number: name for number, (name, _) in METHODS.items()
    }
    assert wmi.ADD_SESSION.id == 1
    assert [(one.full_name, str(one.guid).upper()) for one in wmi.CLASSES] == [
        ("XenProjectXenStoreBase", "AB8136BF-8EA7-420D-ADAD-89C83E587925"),
        ("XenProjectXenStoreSession", "12138A69-97B2-49DD-B9DE-54749AABC789"),
        ("XenProjectXenStoreNodes", "1D80EB99-A1D6-4492-B62F-8B4549FF0B5E"),
        ("XenProjectXenStoreWatchEvent", "8C436757-56BA-4273-9E58-CA4E689260E5"),
        ("XenProjectXenStoreUnsuspendedEvent", "6456AAFA-4D71-497C-A34E-26AA995B14A4"),
    ]
    assert PDO_REVISION == 0x0900000B


@pytest.mark.parametrize("method", ALL)
def test_it_succeeds(ready: Scene, method: int) -> None:
    if method in (10, 11):
        assert run(ready, 9) == SUCCESS
    assert run(ready, method) == SUCCESS


@pytest.mark.parametrize("method", ALL)
def test_without_interfaces(ready: Scene, method: int) -> None:
    """Those that skip the check find the session suspended; Log looks at neither."""
    ready.iface.to_d3()
    expected = {4: INSTANCE_NOT_FOUND, 5: INSTANCE_NOT_FOUND, 6: INSTANCE_NOT_FOUND, 8: SUCCESS}
    assert run(ready, method) == expected.get(method, INSUFFICIENT_RESOURCES)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("instance", ["", SESSION.lower(), SESSION[:-1] + "1", "Session_test_0"])
def test_an_unknown_session(ready: Scene, method: int, instance: str) -> None:
    assert run(ready, method, instance=instance) == (SUCCESS if method == 8 else INSTANCE_NOT_FOUND)


@pytest.mark.parametrize("method", ALL)
def test_a_suspended_session_is_as_unknown(ready: Scene, method: int) -> None:
    ready.iface.wmi.sessions.newest_first()[0].suspended = True
    assert run(ready, method) == (SUCCESS if method == 8 else INSTANCE_NOT_FOUND)


@pytest.mark.parametrize("method", TAKES_TEXT)
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x01",
        b"\x04\x00a\x00",
        b"\xff\xff" + bytes(64),
        b"\x01\x00a\x00",
        b"\x02\x00\x00\xd8",
    ],
    ids=[
        "nothing",
        "half a count",
        "one character short",
        "64 of 65535",
        "odd",
        "a lone surrogate",
    ],
)
def test_a_malformed_input_buffer_comes_before_all_else(
    ready: Scene, method: int, block: bytes
) -> None:
    guid = wmi.SESSION.guid
    ready.iface.to_d3()
    buffer = wnode.MethodItem("no such", method, 0, block, 0).emit(guid.bytes_le)
    assert ready.iface.wmi.request(9, guid, buffer, len(buffer))[0] == INVALID_DEVICE_REQUEST


def test_a_second_string_may_be_malformed_too(ready: Scene) -> None:
    guid = wmi.SESSION.guid
    buffer = wnode.MethodItem(SESSION, 3, 0, wnode.utf16("data/a"), 0).emit(guid.bytes_le)
    assert ready.iface.wmi.request(9, guid, buffer)[0] == INVALID_DEVICE_REQUEST


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, 0xFFFF_FFF0), (0, 4000), (3, 0), (3, 71), (3, 0xFFFF_FFF0), (4, 0xFFFF_FFF0)],
)
def test_a_node_that_points_outside_is_malformed(ready: Scene, field: int, value: int) -> None:
    guid = wmi.SESSION.guid
    buffer = bytearray(
        wnode.MethodItem(SESSION, 1, 0, wnode.utf16("data/a"), 0).emit(guid.bytes_le)
    )
    struct.pack_into("<I", buffer, 48 + 4 * field, value)
    assert ready.iface.wmi.request(9, guid, bytes(buffer), 512)[0] == INVALID_DEVICE_REQUEST


@pytest.mark.parametrize("size", range(0, 73, 8))
def test_a_node_that_is_too_short_is_malformed(ready: Scene, size: int) -> None:
    for row in (wmi.BASE, wmi.SESSION):
        status, answer = ready.iface.wmi.request(9, row.guid, bytes(size))
        expected = INVALID_DEVICE_REQUEST
        assert (status, answer) == (expected, b"")


@pytest.mark.parametrize(("method", "size"), [(1, 4), (2, 18), (12, 14), (13, 2)])
def test_an_answer_that_does_not_fit_is_a_node_that_says_so(
    ready: Scene, method: int, size: int
) -> None:
    """Of the whole node: 72 bytes, the name, and the answer where the arguments were."""
    ready.guest.wmi.session(0).SetValue("data/a", "1")
    offset = -(-(72 + 2 + 2 * len(SESSION)) // 8) * 8
    argument = METHODS[method][1][0]
    room = max(size - (2 + 2 * len(argument)), 0)
    status, node = ready.wmi(method, argument, room=room)
    assert (status, len(data_at(node))) == (SUCCESS, size)
    fits = offset + max(size, 2 + 2 * len(argument))
    if fits > offset + 2 + 2 * len(argument):
        status, node = ready.wmi(method, argument, room=room - 1)
        assert (status, len(node), wnode.flags_of(node)) == (SUCCESS, 56, 0x20)
        assert wnode.size_needed(node) == offset + size


def test_the_store_is_asked_before_the_output_is_found_too_small(ready: Scene) -> None:
    assert ready.wmi(1, "data/none", room=0)[0] == NAME_NOT_FOUND


def test_queries_that_do_not_fit(ready: Scene) -> None:
    request = ready.iface.wmi.request
    for guid, needed in ((wmi.BASE.guid, 80), (wmi.SESSION.guid, 72 + 12 + 14 + 70)):
        assert request(0, guid, b"", 55) == (BUFFER_TOO_SMALL, b"")
        status, node = request(0, guid, b"", 56)
        assert (status, wnode.flags_of(node), wnode.size_needed(node)) == (SUCCESS, 0x20, needed)
        status, node = request(0, guid, b"", needed)
        assert (status, len(node)) == (SUCCESS, needed)


def test_add_session_and_its_output(ready: Scene) -> None:
    guid = wmi.BASE.guid
    buffer = wnode.MethodItem("", 1, 0, wnode.utf16(""), 0).emit(guid.bytes_le)
    for size in (len(buffer), len(buffer) + 1):
        assert ready.iface.wmi.request(9, guid, buffer, size) == (BUFFER_TOO_SMALL, b"")
    assert len(ready.guest.wmi.sessions) == 1
    status, node = ready.iface.wmi.request(9, guid, buffer, len(buffer) + 2)
    assert (status, data_at(node)) == (SUCCESS, b"\x01\0\0\0")
    bad = wnode.MethodItem("", 1, 0, b"\x09\0", 0).emit(guid.bytes_le)
    assert ready.iface.wmi.request(9, guid, bad)[0] == INVALID_DEVICE_REQUEST


@pytest.mark.parametrize("number", [0, 14, 1000])
def test_an_unknown_method(ready: Scene, number: int) -> None:
    assert ready.wmi(number)[0] == ITEMID_NOT_FOUND


def test_an_unknown_method_of_the_base(ready: Scene) -> None:
    buffer = wnode.MethodItem("", 2, 0, b"", 0).emit(wmi.BASE.guid.bytes_le)
    assert ready.iface.wmi.request(9, wmi.BASE.guid, buffer)[0] == ITEMID_NOT_FOUND


@pytest.mark.parametrize("minor", [2, 3, 4, 5, 6, 7, 10, 12, 255])
def test_other_minor_functions(ready: Scene, minor: int) -> None:
    for row in wmi.CLASSES:
        assert ready.iface.wmi.request(minor, row.guid, bytes(512)) == (NOT_SUPPORTED, b"")


@pytest.mark.parametrize("minor", [0, 1, 9])
def test_other_classes(ready: Scene, minor: int) -> None:
    for guid in (wmi.NODES.guid, wmi.WATCH_EVENT.guid, wmi.UNSUSPENDED_EVENT.guid, UUID(int=7)):
        assert ready.iface.wmi.request(minor, guid, bytes(512)) == (NOT_SUPPORTED, b"")


@pytest.mark.parametrize(("index", "expected"), [(0, SUCCESS), (1, ITEMID_NOT_FOUND)])
def test_the_base_has_one_instance(ready: Scene, index: int, expected: int) -> None:
    buffer = bytes(48) + struct.pack("<4I", 0, index, 64, 0)
    assert ready.iface.wmi.request(1, wmi.BASE.guid, buffer, 72)[0] == expected
    status, node = ready.iface.wmi.request(
        1, wmi.BASE.guid, bytes(48) + struct.pack("<4I", 0, 0, 64, 0), 71
    )
    assert (status, wnode.size_needed(node)) == (SUCCESS, 72)


def test_a_single_session_is_found_by_its_name_unless_suspended(ready: Scene) -> None:
    name = wnode.utf16(SESSION)
    offset = 64 + -(-len(name) // 8) * 8
    buffer = bytes(48) + struct.pack("<4I", 64, 0, offset, 0) + name
    status, node = ready.iface.wmi.request(1, wmi.SESSION.guid, buffer, 512)
    assert status == SUCCESS
    assert node[offset:] == b"\0\0\0\0" + wnode.utf16("test")
    ready.iface.to_d3()
    assert ready.iface.wmi.request(1, wmi.SESSION.guid, buffer, 512)[0] == INSTANCE_NOT_FOUND
    assert [one.Id for one in ready.guest.wmi.sessions] == ["test"]


@pytest.mark.parametrize(("name", "expected"), STORE_ERRORS)
@pytest.mark.parametrize("method", sorted(STORE_OPERATION))
def test_what_the_store_says(
    ready: Scene, monkeypatch: pytest.MonkeyPatch, method: int, name: str, expected: int
) -> None:
    if method in (10, 11):
        assert run(ready, 9) == SUCCESS
    ready.refuse(monkeypatch, STORE_OPERATION[method], name)
    assert run(ready, method) == expected
    if method == 9:
        # The driver reports success here, and has no transaction.
        assert run(ready, 10) == OUT_OF_SEQUENCE
    if method in (10, 11):
        assert run(ready, method) == OUT_OF_SEQUENCE


@pytest.mark.parametrize(("name", "_expected"), STORE_ERRORS)
def test_a_watch_that_the_store_refuses_is_insufficient_resources(
    ready: Scene, monkeypatch: pytest.MonkeyPatch, name: str, _expected: int
) -> None:
    ready.refuse(monkeypatch, "watch_add", name)
    assert run(ready, 5) == INSUFFICIENT_RESOURCES
    assert ready.iface.wmi.sessions.newest_first()[0].watches == []


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        (1, ("data/none",), NAME_NOT_FOUND),
        (1, ("data/two words",), INVALID_PARAMETER),
        (1, ("",), INVALID_PARAMETER),
        (1, ("/local/domain/0/backend",), ACCESS_DENIED),
        (2, ("data/a",), PATH_NOT_FOUND),
        (2, ("data/none",), NAME_NOT_FOUND),
        (12, ("data/a",), PATH_NOT_FOUND),
        (3, ("control/new", "1"), ACCESS_DENIED),
        (7, ("memory/target",), ACCESS_DENIED),
        (7, ("data/none",), SUCCESS),
        (7, ("data/none/none",), NAME_NOT_FOUND),
    ],
)  # fmt: skip
def test_what_xenstored_really_says(
    ready: Scene, method: int, arguments: tuple[str, ...], expected: int
) -> None:
    assert ready.wmi(method, *arguments)[0] == expected


@pytest.mark.parametrize("method", [1, 2, 3, 7, 12, 13])
@pytest.mark.parametrize(
    ("path", "over"),
    [
        ("/" + "x" * 3070, False), ("/" + "x" * 3071, True), ("x" * 2047, False), ("x" * 2048, True),
        ("é" * 1024, True), ("é" * 1023, False),
    ],
)  # fmt: skip
def test_limits_of_a_path(ready: Scene, method: int, path: str, over: bool) -> None:
    path = path if method != 13 else path + "/"  # of which the parent is asked
    status, _ = ready.wmi(method, path, *(["1"] if method == 3 else []))
    assert (status == INVALID_BUFFER_SIZE) == over


@pytest.mark.parametrize(("value", "expected"), [("x" * 1023, SUCCESS), ("x" * 1024, INVALID_BUFFER_SIZE), ("é" * 511, SUCCESS), ("é" * 512, INVALID_BUFFER_SIZE), ("", SUCCESS)])  # fmt: skip
def test_limits_of_a_value(ready: Scene, value: str, expected: int) -> None:
    assert ready.wmi(3, "data/a", value)[0] == expected
    assert ready.read("data/a") == (value if expected == SUCCESS else "1")


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([9, 9], OUT_OF_SEQUENCE), ([10], OUT_OF_SEQUENCE), ([11], OUT_OF_SEQUENCE),
        ([9, 10, 10], OUT_OF_SEQUENCE), ([9, 11, 10], OUT_OF_SEQUENCE), ([9, 11, 9], SUCCESS),
    ],
)  # fmt: skip
def test_transactions_out_of_sequence(ready: Scene, sequence: list[int], expected: int) -> None:
    *before, last = sequence
    for method in before:
        assert run(ready, method) == SUCCESS
    assert run(ready, last) == expected


def test_a_conflict_ends_the_transaction(ready: Scene) -> None:
    session = ready.guest.wmi.session(0)
    session.StartTransaction()
    session.SetValue("data/b", session.GetValue("data/a"))
    ready.write("data/a", "other")
    with pytest.raises(NtStatusError) as caught:
        session.CommitTransaction()
    assert caught.value.status == RETRY
    assert run(ready, 10) == OUT_OF_SEQUENCE
    assert ready.xen.toolstack.xs.directory(f"{HOME}/data") == ["a"]


def test_an_open_transaction_is_used_by_all_but_watches(ready: Scene) -> None:
    session, other = ready.guest.wmi.session(0), ready.guest.wmi.add_session("other")
    events = ready.guest.wmi.watch_events()
    session.SetWatch("data")
    ready.xen.run()
    session.StartTransaction()
    session.SetValue("data/b", "2")
    session.RemoveValue("data/a")
    assert session.GetChildren("data").ChildNodes == ("data/b",)
    assert session.GetFirstChild("data") == "data/b"
    assert session.GetNextSibling("data/b") == ""
    assert other.GetChildren("data").ChildNodes == ("data/a",)
    ready.xen.run()
    assert [one.EventId for one in events.take()] == ["data"]
    session.CommitTransaction()
    ready.xen.run()
    assert [one.EventId for one in events.take()] == ["data"]
    assert other.GetValue("data/b") == "2"


def test_the_64th_watch(ready: Scene) -> None:
    for _ in range(63):
        assert run(ready, 5) == SUCCESS
    assert run(ready, 5) == INSUFFICIENT_RESOURCES
    assert run(ready, 6) == SUCCESS
    assert run(ready, 5) == SUCCESS
    assert len([one for one in ready.guest.bus.store.watches() if one.path == "data"]) == 63


def test_the_65537th_session(ready: Scene) -> None:
    sessions = ready.iface.wmi.sessions
    for _ in range(65_535):
        sessions.add("many", suspended=False)
    assert sessions.newest_first()[0].instance.endswith("Session_many_65534")
    with pytest.raises(NtStatusError) as caught:
        ready.guest.wmi.add_session("one more")
    assert caught.value.status == INSUFFICIENT_RESOURCES
    sessions.end(sessions.find(r"XP0001 XENBUS IFACE\Session_many_100"))
    assert ready.guest.wmi.base.AddSession("many") == 101  # the one that is free


def test_ids_and_names_of_sessions(ready: Scene) -> None:
    wmi_ = ready.guest.wmi
    second, third = wmi_.add_session("test"), wmi_.add_session("x")
    assert [(one.SessionId, one.InstanceName[20:]) for one in wmi_.sessions] == [
        (2, "Session_x_0"), (1, "Session_test_1"), (0, "Session_test_0"),
    ]  # fmt: skip
    second.EndSession()
    assert wmi_.add_session("test").InstanceName[20:] == "Session_test_1"
    assert [one.SessionId for one in wmi_.sessions] == [3, 2, 0]
    third.EndSession()
    # Suspended sessions keep their ids and names: the driver gives them out again.
    ready.iface.to_d3()
    assert ready.guest.wmi.base.AddSession("test") == 4
    assert wmi_.sessions[0].InstanceName[20:] == "Session_test_2"


def test_ids_go_round_at_65536(ready: Scene) -> None:
    sessions = ready.iface.wmi.sessions
    session = sessions.newest_first()[0]
    sessions._by_id.clear()
    session.id = 65_535
    sessions._by_id[session.id] = session
    assert [sessions.add("n", suspended=False).id for _ in range(3)] == [0, 1, 2]


def test_a_session_added_in_d3_starts_suspended(ready: Scene) -> None:
    ready.iface.to_d3()
    assert ready.guest.wmi.base.AddSession("late") == 1
    assert (
        ready.wmi(1, "data/a", instance=r"XP0001 XENBUS IFACE\Session_late_0")[0]
        == INSUFFICIENT_RESOURCES
    )
    assert (
        ready.wmi(5, "data", instance=r"XP0001 XENBUS IFACE\Session_late_0")[0]
        == INSTANCE_NOT_FOUND
    )
    assert ready.guest.wmi.base.XenTime == 0
    ready.iface.to_d0()
    assert ready.guest.wmi.session(1).GetValue("data/a") == "1"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/a", "data/B"), ("data/A", "data/B"), ("data/B", "data/c"), ("data/b", "data/c"),
        ("data/c", ""), ("data/none", ""), ("data/", ""), (f"{HOME}/data/a", f"{HOME}/data/B"),
    ],
)  # fmt: skip
def test_siblings_follow_the_store_and_ignore_case(ready: Scene, path: str, expected: str) -> None:
    for name in ("B", "c"):
        ready.write(f"data/{name}", "")
    assert ready.xen.toolstack.xs.directory(f"{HOME}/data") == ["a", "B", "c"]
    assert ready.guest.wmi.session(0).GetNextSibling(path) == expected


def test_no_second_slash_below_the_root(ready: Scene) -> None:
    ready.xen.toolstack.xs.set_permissions("/", ["n0", "r1"])
    session = ready.guest.wmi.session(0)
    first = session.GetFirstChild("/")
    assert first.count("/") == 1
    walk = [first]
    while following := session.GetNextSibling(walk[-1]):
        walk.append(following)
    assert tuple(walk) == session.GetChildren("/").ChildNodes


def test_text_is_utf16_outside_and_utf8_inside(ready: Scene) -> None:
    ready.guest.wmi.session(0).SetValue("data/a", "é€𝄞\udbff\udfff")
    assert ready.xen.toolstack.xs.read(f"{HOME}/data/a") == "é€𝄞\U0010ffff"
    assert ready.guest.wmi.session(0).GetValue("data/a") == "é€𝄞\U0010ffff"


def test_watches_fire_at_once_and_coalesce(ready: Scene) -> None:
    session = ready.guest.wmi.session(0)
    events = ready.guest.wmi.watch_events()
    session.SetWatch("data")
    session.SetWatch("data")
    session.SetWatch("data/a")
    ready.xen.run()
    assert sorted(one.EventId for one in events.take()) == ["data", "data", "data/a"]
    session.RemoveWatch("data")
    session.RemoveWatch("data/none")
    ready.write("data/a", "2")
    ready.write("data/a", "3")
    ready.xen.run()
    assert sorted(one.EventId for one in events.take())[:1] == ["data"]
    session.EndSession()
    ready.xen.run()
    events.take()
    ready.write("data/a", "4")
    ready.xen.run()
    assert events.take() == []
    assert len(ready.iface.wmi.sessions) == 0


def test_log_is_a_line_of_the_guests_log(ready: Scene) -> None:
    ready.guest.wmi.session(0).Log("hello from user space")
    ready.xen.run()
    assert "xeniface|USER: hello from user space" in ready.guest.console.text


def test_limits_are_those_of_the_driver() -> None:
    assert (wmi_session.SESSIONS_MAX, wmi_session.WATCHES_MAX) == (65_536, 63)


def test_a_subscriber_that_does_not_look_loses_the_oldest(ready: Scene) -> None:
    events = ready.guest.wmi.watch_events()
    for number in range(4100):
        ready.iface.wmi.fire(wmi.WATCH_EVENT.guid, wnode.utf16(str(number)))
    assert events.subscription.lost == 4
    assert [one.EventId for one in events.take()] == [str(number) for number in range(4, 4100)]
    events.close()
    ready.iface.wmi.fire(wmi.WATCH_EVENT.guid)
    assert events.take() == []
