"""WMI sessions and IOCTL handles with owners that die at random, against a small model.

The model has sets of what is open. After each step the device, XenBus and the hypervisor have
as many watches, ports, grants, maps and transactions; at the end, after all died, none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tests.iface.conftest import Scene, make
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface.device import PowerState
from xenpv.iface.ioctl import FileObject, open_device
from xenpv.iface.process import Process
from xenpv.iface.wmi_classes import XenStoreSession
from xenpv.iface.xencontrol import Win32Error, XenControl

PICK = st.integers(0, 1 << 16)
ERROR_NOT_FOUND = 1168
ERROR_INVALID_PARAMETER = 87
ERROR_NOT_READY = 21


def when(possible: Callable[[object], object]):
    """A rule that does nothing where it cannot; preconditions would leave few steps."""

    def decorate(run):
        @wraps(run)
        def step(self, **drawn: object) -> None:
            if possible(self):
                run(self, **drawn)

        return step

    return decorate


@attrs.define(eq=False)
class Owned:
    """Something open: through which file, of which process and thread."""

    file: FileObject
    process: Process
    key: int
    thread: int = 0
    pages: int = 0


@attrs.define(eq=False)
class Open:
    """A handle of the device in a process."""

    xc: XenControl

    @property
    def file(self) -> FileObject:
        return self.xc.process.object(self.xc.handle)


class Handles(RuleBasedStateMachine):
    scene: Scene

    @initialize()
    def boot(self) -> None:
        self.scene = make()
        self.peer = self.scene.xen.create(name="peer").start().xencontrol()
        self.iface = self.scene.iface
        self.bus = self.scene.guest.bus
        _, self.foreign = self.peer.gnttab_permit_foreign_access(1, 8)
        self.opens: list[Open] = []
        self.processes: list[Process] = []
        self.watches: list[Owned] = []
        self.ports: list[Owned] = []
        self.events: list[Owned] = []
        self.grants: list[Owned] = []
        self.maps: list[Owned] = []
        # SessionId: its watched paths, and whether a transaction is open
        self.sessions: dict[int, list[str]] = {}
        self.transactions: set[int] = set()
        self.before = self._counts()
        for _ in range(2):
            self.start_a_process()

    def _counts(self) -> tuple[int, ...]:
        domain = self.bus.domain
        return (
            len(self.bus.store.watches()),
            len(self.bus.evtchn.channels()),
            self.bus.gnttab.permitted,
            len(domain.gnttab.maptrack),
            self.iface.pages.locked,
            len(self.bus.store.transactions()),
            len([one for one in domain.tasks if one.name.startswith(("iface", "wmi"))]),
        )

    @property
    def ready(self) -> bool:
        return self.iface.power is PowerState.D0

    def pick(self, things: list, index: int):
        return things[index % len(things)]

    def mine(self, index: int) -> Open:
        return self.pick(self.opens, index)

    def refused(self, call, *arguments: object) -> int:
        try:
            call(*arguments)
        except Win32Error as error:
            return error.code
        return 0

    # owners

    @rule()
    @when(lambda self: len(self.opens) < 6)
    def start_a_process(self) -> None:
        process = self.iface.process("p")
        self.processes.append(process)
        self.opens.append(Open(XenControl(self.iface, process)))

    @rule(index=PICK)
    @when(lambda self: self.opens and len(self.opens) < 8)
    def open_again(self, index: int) -> None:
        """A second file of a process: what it has is its own."""
        xc = self.mine(index).xc
        again = XenControl.__new__(XenControl)
        vars(again).update(vars(xc), handle=open_device(self.iface, xc.process))
        self.opens.append(Open(again))

    @rule(index=PICK)
    @when(lambda self: self.opens and len(self.opens) < 8)
    def duplicate(self, index: int) -> None:
        xc = self.mine(index).xc
        again = XenControl.__new__(XenControl)
        vars(again).update(vars(xc), handle=xc.process.duplicate_handle(xc.handle))
        self.opens.append(Open(again))

    @rule(index=PICK)
    @when(lambda self: self.opens)
    def close(self, index: int) -> None:
        one = self.mine(index)
        file = one.file
        self.opens.remove(one)
        one.xc.close()
        if not any(other.file is file for other in self.opens):
            self._file_closed(file)

    def _file_closed(self, file: FileObject) -> None:
        for kept in (self.watches, self.ports, self.events):
            kept[:] = [one for one in kept if one.file is not file]

    @rule(index=PICK)
    @when(lambda self: self.processes)
    def a_process_dies(self, index: int) -> None:
        process = self.pick(self.processes, index)
        self.processes.remove(process)
        files = [one.file for one in self.opens if one.xc.process is process]
        self.opens = [one for one in self.opens if one.xc.process is not process]
        process.exit()
        for file in files:
            if not any(other.file is file for other in self.opens):
                self._file_closed(file)
        for kept in (self.grants, self.maps):
            kept[:] = [one for one in kept if one.process is not process]

    @rule(index=PICK, thread=st.integers(0, 2))
    @when(lambda self: self.processes)
    def a_thread_dies(self, index: int, thread: int) -> None:
        process = self.pick(self.processes, index)
        process.exit_thread(thread)
        for kept in (self.grants, self.maps):
            kept[:] = [one for one in kept if (one.process, one.thread) != (process, thread)]

    # what they open

    @rule(index=PICK)
    @when(lambda self: self.opens and self.ready)
    def watch(self, index: int) -> None:
        one = self.mine(index)
        key = one.xc.store_add_watch("data", one.xc.create_event())
        self.watches.append(Owned(one.file, one.xc.process, key))

    @rule(index=PICK, masked=st.booleans())
    @when(lambda self: self.opens and self.ready)
    def bind(self, index: int, masked: bool) -> None:
        one = self.mine(index)
        port = one.xc.evtchn_open_unbound(2, one.xc.create_event(), masked)
        self.ports.append(Owned(one.file, one.xc.process, port))

    @rule(index=PICK)
    @when(lambda self: self.opens and self.ready)
    def register(self, index: int) -> None:
        one = self.mine(index)
        key = one.xc.suspend_register(one.xc.create_event())
        self.events.append(Owned(one.file, one.xc.process, key))

    @rule(index=PICK, pages=st.integers(1, 4), thread=st.integers(0, 2), own=st.booleans())
    @when(lambda self: self.opens and self.ready and len(self.grants) < 20)
    def permit(self, index: int, pages: int, thread: int, own: bool) -> None:
        one = self.mine(index)
        base = one.xc.process.alloc(4 * 4096) if own else 0
        address, refs = one.xc.gnttab_permit_foreign_access2(2, base, pages, thread=thread)
        assert len(refs) == pages
        self.grants.append(Owned(one.file, one.xc.process, address, thread, pages))

    @rule(index=PICK, count=st.integers(1, 8), thread=st.integers(0, 2))
    @when(lambda self: self.opens and self.ready and len(self.maps) < 20)
    def map(self, index: int, count: int, thread: int) -> None:
        one = self.mine(index)
        address = one.xc.gnttab_map_foreign_pages(2, self.foreign[:count], thread=thread)
        self.maps.append(Owned(one.file, one.xc.process, address, thread, count))

    # and close: each through a handle that may be another's

    def _give_back(self, kept: list[Owned], index: int, by: int, name: str, wrong: int) -> None:
        thing, one = self.pick(kept, index), self.mine(by)
        code = self.refused(getattr(one.xc, name), thing.key)
        if not self.ready:
            assert code == ERROR_NOT_READY
            return
        by_file = kept in (self.watches, self.ports, self.events)
        mine = one.file is thing.file if by_file else one.xc.process is thing.process
        if mine:
            assert code == 0
            kept.remove(thing)
        elif by_file:
            assert code == wrong
        else:
            # Addresses are a process's: the same number may be another's of its own.
            same = [x for x in kept if x.process is one.xc.process and x.key == thing.key]
            assert code == (0 if same else wrong)
            if same:
                kept.remove(same[0])

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.watches)
    def unwatch(self, index: int, by: int) -> None:
        self._give_back(self.watches, index, by, "store_remove_watch", ERROR_NOT_FOUND)

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.ports)
    def unbind(self, index: int, by: int) -> None:
        self._give_back(self.ports, index, by, "evtchn_close", ERROR_NOT_FOUND)

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.events)
    def deregister(self, index: int, by: int) -> None:
        self._give_back(self.events, index, by, "suspend_deregister", ERROR_NOT_FOUND)

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.grants)
    def revoke(self, index: int, by: int) -> None:
        self._give_back(self.grants, index, by, "gnttab_revoke_foreign_access", ERROR_NOT_FOUND)

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.maps)
    def unmap(self, index: int, by: int) -> None:
        self._give_back(self.maps, index, by, "gnttab_unmap_foreign_pages", ERROR_NOT_FOUND)

    @rule(index=PICK, by=PICK)
    @when(lambda self: self.opens and self.ports and self.ready)
    def unmask(self, index: int, by: int) -> None:
        thing, one = self.pick(self.ports, index), self.mine(by)
        code = self.refused(one.xc.evtchn_unmask, thing.key)
        assert code == (0 if one.file is thing.file else ERROR_INVALID_PARAMETER)

    # sessions: nobody's, so anybody may use them

    @rule(name=st.sampled_from(["a", "b"]))
    @when(lambda self: len(self.sessions) < 6)
    def add_session(self, name: str) -> None:
        number = self.scene.guest.wmi.base.AddSession(name)
        assert number not in self.sessions
        self.sessions[number] = []

    def _session(self, index: int) -> tuple[int, XenStoreSession]:
        number = self.pick(list(self.sessions), index)
        return number, self.scene.guest.wmi.session(number)

    def _status(self, call, *arguments: str) -> int:
        try:
            call(*arguments)
        except NtStatusError as error:
            return error.status
        return 0

    @rule(index=PICK)
    @when(lambda self: self.sessions)
    def end_session(self, index: int) -> None:
        number, session = self._session(index)
        status = self._status(session.EndSession)
        assert status == (0 if self.ready else NTSTATUS.WMI_INSTANCE_NOT_FOUND)
        if not status:
            del self.sessions[number]
            self.transactions.discard(number)

    @rule(index=PICK, path=st.sampled_from(["data", "data/x"]))
    @when(lambda self: self.sessions)
    def set_watch(self, index: int, path: str) -> None:
        number, session = self._session(index)
        if not self._status(session.SetWatch, path):
            self.sessions[number].append(path)

    @rule(index=PICK, path=st.sampled_from(["data", "data/x"]))
    @when(lambda self: self.sessions)
    def remove_watch(self, index: int, path: str) -> None:
        number, session = self._session(index)
        status = self._status(session.RemoveWatch, path)
        if not status and path in self.sessions[number]:
            self.sessions[number].remove(path)

    @rule(
        index=PICK,
        end=st.sampled_from(["StartTransaction", "CommitTransaction", "AbortTransaction"]),
    )
    @when(lambda self: self.sessions)
    def transaction(self, index: int, end: str) -> None:
        number, session = self._session(index)
        status = self._status(getattr(session, end))
        if not self.ready:
            assert status == NTSTATUS.INSUFFICIENT_RESOURCES
        elif (end == "StartTransaction") == (number in self.transactions):
            assert status == NTSTATUS.REQUEST_OUT_OF_SEQUENCE
        else:
            assert status in (0, NTSTATUS.RETRY)
            self.transactions ^= {number}

    # the machine

    @rule()
    def power(self) -> None:
        if self.ready:
            self.iface.to_d3()
            self.watches, self.ports, self.events = [], [], []
            self.transactions.clear()
        else:
            self.iface.to_d0()

    @rule()
    def run_for_a_while(self) -> None:
        self.scene.write("data/x", "1")
        self.scene.xen.run()

    @invariant()
    def what_is_open_is_what_the_model_has(self) -> None:
        watches = len(self.watches)
        if self.ready:
            watches += sum(map(len, self.sessions.values()))
        pages = sum(one.pages for one in self.grants)
        counts = self._counts()
        assert counts[0] - self.before[0] == watches
        assert counts[1] - self.before[1] == len(self.ports)
        assert counts[2] - self.before[2] == pages
        assert counts[3] - self.before[3] == sum(one.pages for one in self.maps)
        assert counts[4] == pages
        assert counts[5] - self.before[5] == len(self.transactions)
        held = len(self.iface.gnttab.contexts)
        assert held == len(self.grants) + len(self.maps)
        assert len(self.iface.suspend.events) == len(self.events)

    def teardown(self) -> None:
        if not hasattr(self, "before"):
            return
        for process in self.processes:
            process.exit()
        self.iface.to_d0()
        for session in self.scene.guest.wmi.sessions:
            session.EndSession()
        assert self.iface.leftovers() == []
        assert self._counts() == self.before
        # No map is left: the peer can take its grants back.
        address = self.peer.process.pending[0].output[:8]
        self.peer.gnttab_revoke_foreign_access(int.from_bytes(address, "little"))
        assert self.scene.xen.guests[1].iface.gnttab.mapped_still == []
        self.scene.xen.close()


TestHandles = Handles.TestCase
TestHandles.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
