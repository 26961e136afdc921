"""The WMI classes of XENIFACE as a client sees them, with the names of wmi.mof.

Every call goes through the provider's buffers, as the WMI service would make it. A failure is
an NtStatusError. The service asks again with more room where an answer did not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface import wmi, wnode
from xenpv.iface.security import Principal, check
from xenpv.iface.wnode import MethodItem, Reader, Writer

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.xen.loop import Task

ROOM: int = 512  # bytes that the service offers for an answer at first


@attrs.frozen(kw_only=True)
class XenStoreNodes:
    """The children of a node, by their full paths."""

    NoOfChildNodes: int
    ChildNodes: tuple[str, ...]


@attrs.frozen(kw_only=True)
class XenStoreWatchEvent:
    """A watch fired. `EventId` is the path that is watched, not the node that changed."""

    EventId: str


@attrs.frozen
class XenStoreUnsuspendedEvent:
    """The domain was resumed in a new one."""


class EventQueue:
    """The events of one class since it was asked for, oldest first."""

    def __init__(self, provider: wmi.WmiProvider, guid: UUID, task: Task | None) -> None:
        self._provider = provider
        self.subscription = provider.subscribe(guid, task)

    def take(self) -> list[XenStoreWatchEvent | XenStoreUnsuspendedEvent]:
        """What came since the last call."""
        payloads = list(self.subscription.events)
        self.subscription.events.clear()
        if self.subscription.guid == wmi.UNSUSPENDED_EVENT.guid:
            return [XenStoreUnsuspendedEvent() for _ in payloads]
        return [XenStoreWatchEvent(EventId=Reader(payload).string()) for payload in payloads]

    def close(self) -> None:
        self._provider.unsubscribe(self.subscription)


class WmiNamespace:
    """`root\\wmi` of one guest, as `principal` may use it.

    Raises NtStatusError ACCESS_DENIED for what the class's security refuses.
    """

    def __init__(self, device: XenIface, principal: Principal = Principal.ADMINISTRATORS) -> None:
        self.device = device
        self.provider = device.wmi
        self.principal = principal

    def _request(self, minor: int, of: wmi.WmiClass, buffer: bytes, size: int) -> bytes:
        check(of.sddl, self.principal, of.full_name)
        while True:
            status, node = self.provider.request(minor, of.guid, buffer, size)
            if status is not NTSTATUS.SUCCESS:
                raise NtStatusError(status, operation=f"{of.full_name} {wmi.Minor(minor).name}")
            if wnode.flags_of(node) != wnode.WNODE_FLAG_TOO_SMALL:
                return node
            size = wnode.size_needed(node)

    def execute(self, of: wmi.WmiClass, instance: str, method: int, block: bytes) -> bytes:
        """IRP_MN_EXECUTE_METHOD: the bytes of the result."""
        item = MethodItem(instance, method, 0, block, 0)
        buffer = item.emit(of.guid.bytes_le)
        node = self._request(wmi.Minor.EXECUTE_METHOD, of, buffer, len(buffer) + ROOM)
        return MethodItem.parse(node, len(node)).block

    @property
    def base(self) -> XenStoreBase:
        """The one instance of XenStoreBase."""
        check(wmi.BASE.sddl, self.principal, wmi.BASE.full_name)
        return XenStoreBase(self)

    @property
    def sessions(self) -> list[XenStoreSession]:
        """All instances of XenStoreSession, newest first, suspended ones too."""
        node = self._request(wmi.Minor.QUERY_ALL_DATA, wmi.SESSION, b"", ROOM)
        result = []
        for name, data in wnode.parse_all_data(node):
            reader = Reader(data)
            number = reader.u32()
            result.append(XenStoreSession(self, name, number, reader.string()))
        return result

    def session(self, SessionId: int) -> XenStoreSession:
        """The instance of that id. Raises NtStatusError WMI_INSTANCE_NOT_FOUND."""
        for session in self.sessions:
            if session.SessionId == SessionId:
                return session
        raise NtStatusError(NTSTATUS.WMI_INSTANCE_NOT_FOUND, f"no session {SessionId}")

    def add_session(self, Id: str) -> XenStoreSession:
        """AddSession, and the instance that it made."""
        return self.session(self.base.AddSession(Id))

    def watch_events(self, task: Task | None = None) -> EventQueue:
        """XenStoreWatchEvent from now on; `task` is woken for each."""
        check(wmi.WATCH_EVENT.sddl, self.principal, wmi.WATCH_EVENT.full_name)
        return EventQueue(self.provider, wmi.WATCH_EVENT.guid, task)

    def unsuspended_events(self, task: Task | None = None) -> EventQueue:
        """XenStoreUnsuspendedEvent from now on; `task` is woken for each."""
        check(wmi.UNSUSPENDED_EVENT.sddl, self.principal, wmi.UNSUSPENDED_EVENT.full_name)
        return EventQueue(self.provider, wmi.UNSUSPENDED_EVENT.guid, task)


class XenStoreBase:
    """The base object: the time, and new sessions."""

    InstanceName = wmi.PDO_INSTANCE
    Active = True

    def __init__(self, namespace: WmiNamespace) -> None:
        self.namespace = namespace

    @property
    def XenTime(self) -> int:
        """100 ns since 1601; 0 while the device is in D3."""
        fields = wnode.SINGLE_INSTANCE.pack(0, 0, wnode.SINGLE_INSTANCE_SIZE, 0)
        flags = wnode.WNODE_FLAG_SINGLE_INSTANCE
        size = wnode.SINGLE_INSTANCE_SIZE
        buffer = wnode.header(size, wmi.BASE.guid.bytes_le, flags) + fields
        minor = wmi.Minor.QUERY_SINGLE_INSTANCE
        node = self.namespace._request(minor, wmi.BASE, buffer, size + 8)
        return int.from_bytes(node[size : size + 8], "little")

    def AddSession(self, Id: str) -> int:
        """A new session's id. INSUFFICIENT_RESOURCES when there are 65,536."""
        block = wnode.utf16(Id)
        result = self.namespace.execute(wmi.BASE, self.InstanceName, wmi.ADD_SESSION.id, block)
        return Reader(result).u32()


class XenStoreSession:
    """One session. Any client may use it, whoever made it."""

    Active = True

    def __init__(self, namespace: WmiNamespace, name: str, number: int, text: str) -> None:
        self.namespace = namespace
        self.InstanceName = name
        self.SessionId = number
        self.Id = text

    def __repr__(self) -> str:
        return f"<XenStoreSession {self.SessionId} {self.InstanceName}>"

    def _execute(self, method: int, *arguments: str) -> bytes:
        writer = Writer()
        for argument in arguments:
            writer.string(argument)
        block = bytes(writer.data)
        return self.namespace.execute(wmi.SESSION, self.InstanceName, method, block)

    def GetValue(self, Pathname: str) -> str:
        """A node's value."""
        return Reader(self._execute(1, Pathname)).string()

    def GetChildren(self, Pathname: str) -> XenStoreNodes:
        """The children of a node. OBJECT_PATH_NOT_FOUND when there are none."""
        reader = Reader(self._execute(2, Pathname))
        count = reader.u32()
        nodes = tuple(reader.string() for _ in range(count))
        return XenStoreNodes(NoOfChildNodes=count, ChildNodes=nodes)

    def SetValue(self, Pathname: str, value: str) -> None:
        """Write at most 1,023 bytes of UTF-8."""
        self._execute(3, Pathname, value)

    def EndSession(self) -> None:
        """Its watches and its transaction go with it."""
        self._execute(4)

    def SetWatch(self, Pathname: str) -> None:
        """XenStoreWatchEvent once now and after changes at or below the path."""
        self._execute(5, Pathname)

    def RemoveWatch(self, Pathname: str) -> None:
        """The newest watch of that very path; succeeds where there is none."""
        self._execute(6, Pathname)

    def RemoveValue(self, Pathname: str) -> None:
        """Remove a node with all below it."""
        self._execute(7, Pathname)

    def Log(self, Message: str) -> None:
        """A line of the guest's log."""
        self._execute(8, Message)

    def StartTransaction(self) -> None:
        """Reads and writes of this session belong to it from now on; watches do not."""
        self._execute(9)

    def CommitTransaction(self) -> None:
        """RETRY on a conflict; it is over then too."""
        self._execute(10)

    def AbortTransaction(self) -> None:
        self._execute(11)

    def GetFirstChild(self, InPath: str) -> str:
        """The full path of the first child, in the store's order. OBJECT_PATH_NOT_FOUND."""
        return Reader(self._execute(12, InPath)).string()

    def GetNextSibling(self, InPath: str) -> str:
        """The full path of the next one; empty after the last, and for what is not there."""
        return Reader(self._execute(13, InPath)).string()
