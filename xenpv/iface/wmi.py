"""XENIFACE as a provider of WMI data: requests in WNODE buffers, and their statuses.

win-xeniface wmi.c. A request is an IRP_MJ_SYSTEM_CONTROL: a minor function, the GUID of a
class, a buffer. `wmi_classes` has the Python objects over it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface import wnode
from xenpv.iface.security import EVENT_SDDL, WMI_SDDL
from xenpv.iface.wmi_session import Session, Sessions
from xenpv.iface.wnode import MalformedBuffer, MethodItem, Reader, Writer

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.xen.loop import Task

NAMESPACE: Final = "root\\wmi"
MOF_RESOURCE: Final = "XENIFACEMOF"
OBJECT_PREFIX: Final = "XenProject"  # the build's, before every class name
# Device names: of the PDO's instance, and what IoWMISuggestInstanceName makes of it.
PDO_INSTANCE: Final = "XENBUS\\VEN_XP0001&DEV_IFACE\\__0"
SUGGESTED_INSTANCE: Final = "XP0001 XENBUS IFACE"
EVENTS_MAX: Final = 4096  # that one subscriber may leave unread; the oldest goes
LOG_MAX: Final = 256  # characters of a line


class Minor(enum.IntEnum):
    """IRP_MN_ of IRP_MJ_SYSTEM_CONTROL."""

    QUERY_ALL_DATA = 0
    QUERY_SINGLE_INSTANCE = 1
    CHANGE_SINGLE_INSTANCE = 2
    CHANGE_SINGLE_ITEM = 3
    ENABLE_EVENTS = 4
    DISABLE_EVENTS = 5
    ENABLE_COLLECTION = 6
    DISABLE_COLLECTION = 7
    REGINFO = 8
    EXECUTE_METHOD = 9
    REGINFO_EX = 11


@attrs.frozen
class WmiClass:
    """A class: its GUID and who may use it. XenStoreNodes is only the type of a result."""

    name: str
    guid: UUID
    sddl: str = WMI_SDDL
    is_event: bool = False

    @property
    def full_name(self) -> str:
        return OBJECT_PREFIX + self.name


BASE: Final = WmiClass("XenStoreBase", UUID("AB8136BF-8EA7-420D-ADAD-89C83E587925"))
SESSION: Final = WmiClass("XenStoreSession", UUID("12138A69-97B2-49DD-B9DE-54749AABC789"))
NODES: Final = WmiClass("XenStoreNodes", UUID("1D80EB99-A1D6-4492-B62F-8B4549FF0B5E"))
WATCH_EVENT: Final = WmiClass(
    "XenStoreWatchEvent", UUID("8C436757-56BA-4273-9E58-CA4E689260E5"), EVENT_SDDL, is_event=True
)
UNSUSPENDED_EVENT: Final = WmiClass(
    "XenStoreUnsuspendedEvent",
    UUID("6456AAFA-4D71-497C-A34E-26AA995B14A4"),
    EVENT_SDDL,
    is_event=True,
)
CLASSES: Final = (BASE, SESSION, NODES, WATCH_EVENT, UNSUSPENDED_EVENT)


@attrs.frozen
class Method:
    """A method of a class. `interfaces`, `session`: what is checked before it is run."""

    id: int
    name: str
    arguments: tuple[str, ...] = ()
    result: str = ""
    interfaces: bool = True
    session: bool = True


SESSION_METHODS: Final[Mapping[int, Method]] = {
    method.id: method
    for method in (
        Method(1, "GetValue", ("Pathname",), "value"),
        Method(2, "GetChildren", ("Pathname",), "children"),
        Method(3, "SetValue", ("Pathname", "value")),
        Method(4, "EndSession", interfaces=False),
        Method(5, "SetWatch", ("Pathname",), interfaces=False),
        Method(6, "RemoveWatch", ("Pathname",), interfaces=False),
        Method(7, "RemoveValue", ("Pathname",)),
        Method(8, "Log", ("Message",), interfaces=False, session=False),
        Method(9, "StartTransaction"),
        Method(10, "CommitTransaction"),
        Method(11, "AbortTransaction"),
        Method(12, "GetFirstChild", ("InPath",), "OutPath"),
        Method(13, "GetNextSibling", ("InPath",), "OutPath"),
    )
}
ADD_SESSION: Final = Method(1, "AddSession", ("Id",), "SessionId", interfaces=False, session=False)


class Subscription:
    """Who receives the events of one class: the payload of each, oldest first.

    `task` is woken for each. Beyond EVENTS_MAX unread ones the oldest is `lost`.
    """

    def __init__(self, guid: UUID, task: Task | None = None) -> None:
        self.guid = guid
        self.task = task
        self.events: deque[bytes] = deque()
        self.lost = 0

    def deliver(self, payload: bytes) -> None:
        if len(self.events) >= EVENTS_MAX:
            self.events.popleft()
            self.lost += 1
        self.events.append(payload)
        if self.task is not None:
            self.task.wake()


class WmiProvider:
    """The WMI side of one XENIFACE device."""

    def __init__(self, device: XenIface) -> None:
        self.device = device
        self.subscriptions: list[Subscription] = []
        self.sessions = Sessions(
            device.bus.domain,
            device.store,
            SUGGESTED_INSTANCE,
            device.suspend_count,
            self._watch_fired,
        )
        self._handlers: dict[str, Callable[..., bytes]] = {
            "GetValue": self._get_value,
            "GetChildren": self._get_children,
            "SetValue": self._set_value,
            "EndSession": self._end_session,
            "SetWatch": self._set_watch,
            "RemoveWatch": self._remove_watch,
            "RemoveValue": self._remove_value,
            "Log": self._log,
            "StartTransaction": self._start_transaction,
            "CommitTransaction": self._commit_transaction,
            "AbortTransaction": self._abort_transaction,
            "GetFirstChild": self._get_first_child,
            "GetNextSibling": self._get_next_sibling,
        }

    # events

    def subscribe(self, guid: UUID, task: Task | None = None) -> Subscription:
        subscription = Subscription(guid, task)
        self.subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)

    def fire(self, guid: UUID, payload: bytes = b"") -> None:
        """WmiFireEvent."""
        for subscription in self.subscriptions:
            if subscription.guid == guid:
                subscription.deliver(payload)

    def _watch_fired(self, path: str) -> None:
        self.fire(WATCH_EVENT.guid, wnode.utf16(path))

    def fire_suspend_event(self) -> None:
        """WmiFireSuspendEvent."""
        self.fire(UNSUSPENDED_EVENT.guid)

    # requests

    def request(
        self, minor: int, guid: UUID, buffer: bytes, size: int | None = None
    ) -> tuple[NTSTATUS, bytes]:
        """One request: its status, and what is in the buffer after it.

        `size` is of the buffer, `buffer` how it begins. An answer that does not fit: SUCCESS
        with a WNODE_TOO_SMALL, or, where not even that fits, BUFFER_TOO_SMALL with nothing.
        """
        size = len(buffer) if size is None else size
        if size < len(buffer):
            return NTSTATUS.INVALID_DEVICE_REQUEST, b""
        buffer += bytes(size - len(buffer))
        try:
            if minor == Minor.EXECUTE_METHOD and guid == BASE.guid:
                return self._execute_base(buffer, size)
            if minor == Minor.EXECUTE_METHOD and guid == SESSION.guid:
                return self._execute_session(buffer, size)
            if minor == Minor.QUERY_ALL_DATA and guid in (BASE.guid, SESSION.guid):
                return self._query_all_data(guid, size)
            if minor == Minor.QUERY_SINGLE_INSTANCE and guid in (BASE.guid, SESSION.guid):
                return self._query_single_instance(guid, buffer, size)
        except MalformedBuffer:
            return NTSTATUS.INVALID_DEVICE_REQUEST, b""
        except NtStatusError as error:
            return error.status, b""
        return NTSTATUS.NOT_SUPPORTED, b""

    def _fit(self, node: bytes, size: int) -> tuple[NTSTATUS, bytes]:
        if len(node) <= size:
            return NTSTATUS.SUCCESS, node
        if size < wnode.TOO_SMALL_SIZE:
            return NTSTATUS.BUFFER_TOO_SMALL, b""
        return NTSTATUS.SUCCESS, wnode.too_small(len(node), self.time())

    def time(self) -> int:
        """XenTime: a FILETIME, 0 while there is nothing to read it from."""
        return self.device.get_time()[0] if self.device.interfaces_acquired else 0

    def _query_all_data(self, guid: UUID, size: int) -> tuple[NTSTATUS, bytes]:
        if guid == BASE.guid:
            fields = wnode.ALL_DATA.pack(wnode.ALL_DATA_SIZE, 1, 0) + wnode.U32.pack(8)
            flags = (
                wnode.WNODE_FLAG_ALL_DATA
                | wnode.WNODE_FLAG_FIXED_INSTANCE_SIZE
                | wnode.WNODE_FLAG_PDO_INSTANCE_NAMES
            )
            data = wnode.header(wnode.ALL_DATA_SIZE + 8, guid.bytes_le, flags, self.time()) + fields
            data += bytes(wnode.ALL_DATA_SIZE - len(data)) + self.time().to_bytes(8, "little")
            return self._fit(data, size)
        sessions = self.sessions.newest_first()
        instances = [(one.instance, _session_data(one)) for one in sessions]
        return self._fit(wnode.all_data(guid.bytes_le, instances, self.time()), size)

    def _query_single_instance(
        self, guid: UUID, buffer: bytes, size: int
    ) -> tuple[NTSTATUS, bytes]:
        if len(buffer) < wnode.SINGLE_INSTANCE_SIZE:
            return self._fit(bytes(wnode.SINGLE_INSTANCE_SIZE), size)
        fields = wnode.SINGLE_INSTANCE.unpack_from(buffer, wnode.HEADER_SIZE)
        name_offset, index, data_offset, _size = fields
        if not wnode.SINGLE_INSTANCE_SIZE <= data_offset <= size:
            raise MalformedBuffer(f"data at {data_offset} of {size} bytes")
        if guid == BASE.guid:
            if index:
                raise NtStatusError(NTSTATUS.WMI_ITEMID_NOT_FOUND, f"instance {index} of one")
            data = self.time().to_bytes(8, "little")
        else:
            data = _session_data(self.sessions.find(Reader(buffer, name_offset).string()))
        head = bytearray(buffer[:data_offset])
        head += bytes(data_offset - len(head))
        wnode.U32.pack_into(head, 0, data_offset + len(data))
        wnode.U32.pack_into(head, wnode.HEADER_SIZE + 12, len(data))
        return self._fit(bytes(head) + data, size)

    def _execute_base(self, buffer: bytes, size: int) -> tuple[NTSTATUS, bytes]:
        item = MethodItem.parse(buffer, size)
        if item.method != ADD_SESSION.id:
            raise NtStatusError(NTSTATUS.WMI_ITEMID_NOT_FOUND, f"method {item.method}")
        name = Reader(item.block).string()
        if size - item.block_offset < 4:
            return NTSTATUS.BUFFER_TOO_SMALL, b""
        session = self.sessions.add(name, suspended=not self.device.interfaces_acquired)
        block = Writer().u32(session.id).data
        return NTSTATUS.SUCCESS, wnode.answer(buffer, item, bytes(block))

    def _execute_session(self, buffer: bytes, size: int) -> tuple[NTSTATUS, bytes]:
        item = MethodItem.parse(buffer, size)
        method = SESSION_METHODS.get(item.method)
        if method is None:
            raise NtStatusError(NTSTATUS.WMI_ITEMID_NOT_FOUND, f"method {item.method}")
        reader = Reader(item.block)
        arguments = [reader.string() for _ in method.arguments]
        if method.interfaces and not self.device.interfaces_acquired:
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, "the device is in D3")
        handler = self._handlers[method.name]
        if method.session:
            block = handler(self.sessions.find(item.instance), *arguments)
        else:
            block = handler(*arguments)
        return self._fit(wnode.answer(buffer, item, block), size)

    # methods of XenStoreSession: each returns the bytes of its result

    def _get_value(self, session: Session, path: str) -> bytes:
        return wnode.utf16(self.device.store.read(path, session.transaction))

    def _get_children(self, session: Session, path: str) -> bytes:
        names = self.device.store.directory(path, session.transaction)
        writer = Writer().u32(len(names))
        for name in names:
            writer.string(_below(path, name))
        return bytes(writer.data)

    def _set_value(self, session: Session, path: str, value: str) -> bytes:
        self.device.store.write(path, value, session.transaction)
        return b""

    def _end_session(self, session: Session) -> bytes:
        self.sessions.end(session)
        return b""

    def _set_watch(self, session: Session, path: str) -> bytes:
        self.sessions.add_watch(session, path)
        return b""

    def _remove_watch(self, session: Session, path: str) -> bytes:
        self.sessions.remove_watch(session, path)
        return b""

    def _remove_value(self, session: Session, path: str) -> bytes:
        self.device.store.remove(path, session.transaction)
        return b""

    def _log(self, message: str) -> bytes:
        self.device.log(f"USER: {message[:LOG_MAX]}")
        return b""

    def _start_transaction(self, session: Session) -> bytes:
        """What the store says against it, too: the driver reports success then."""
        if session.transaction is not None:
            raise NtStatusError(NTSTATUS.REQUEST_OUT_OF_SEQUENCE, "a transaction is open")
        session.transaction = self.device.store.transaction_start()
        return b""

    def _commit_transaction(self, session: Session) -> bytes:
        return self._end_transaction(session, commit=True)

    def _abort_transaction(self, session: Session) -> bytes:
        return self._end_transaction(session, commit=False)

    def _end_transaction(self, session: Session, *, commit: bool) -> bytes:
        """It is over for the session, also on failure."""
        transaction, session.transaction = session.transaction, None
        if transaction is None:
            raise NtStatusError(NTSTATUS.REQUEST_OUT_OF_SEQUENCE, "no transaction is open")
        self.device.store.transaction_end(transaction, commit=commit)
        return b""

    def _get_first_child(self, session: Session, path: str) -> bytes:
        names = self.device.store.directory(path, session.transaction)
        return wnode.utf16(_below(path, names[0]))

    def _get_next_sibling(self, session: Session, path: str) -> bytes:
        parent, slash, leaf = path.rpartition("/")
        if slash and not parent:
            parent = "/"
        names = self.device.store.directory(parent, session.transaction)
        folded = [name.upper() for name in names]
        at = folded.index(leaf.upper()) + 1 if leaf.upper() in folded else len(names)
        return wnode.utf16(_below(parent, names[at]) if at < len(names) else "")


def _below(path: str, name: str) -> str:
    return path + name if path == "/" else f"{path}/{name}"


def _session_data(session: Session) -> bytes:
    return bytes(Writer().u32(session.id).string(session.name).data)
