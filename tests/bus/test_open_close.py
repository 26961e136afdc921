"""Everything of EVTCHN, STORE and SUSPEND opened, used and closed in any order, with suspends
between, leaves no port, watch, transaction or buffer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bus.test_store_interface import Scene, make
from tests.world import make as make_world
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendInterface
from xenpv.errors import LocalProtocolError

OPENS = ("unbound", "inter-domain", "virq", "transaction", "watch", "buffer", "callback")
STEPS = st.lists(
    st.tuples(
        st.sampled_from((*OPENS, "use", "use", "close", "close", "run", "suspend", "cancel")),
        st.integers(0, 1 << 16),
    ),
    max_size=40,
)


class Driver:
    """Holds what it opened as (kind, handle), and knows what each kind is for."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.held: list[tuple[str, Any]] = []
        self.evtchn = self._view(scene.evtchn)
        self.suspend = self._view(scene.suspend)
        self.store = scene.view

    @staticmethod
    def _view(interface: EvtchnInterface | SuspendInterface) -> InterfaceVersion:
        view = query_interface([interface], interface.GUID, max(interface.OPERATIONS))
        view.acquire()
        return view

    def _event(self) -> None:
        pass

    def open(self, kind: str, draw: int) -> None:
        handle: Any
        if kind == "unbound":
            handle = self.evtchn.open(2, self._event, 0, draw % 2)
        elif kind == "inter-domain":
            port = self.scene.world.dom0.evtchn.alloc_unbound(1)
            handle = self.evtchn.open(3, self._event, 0, port, draw % 2)
        elif kind == "virq":
            handle = self.evtchn.open(4, self._event, draw % 2, 0, 0)  # VIRQ_TIMER, VIRQ_DEBUG
        elif kind == "transaction":
            handle = self._try(self.store.transaction_start)
        elif kind == "watch":
            handle = self._try(self.store.watch_add, "data", f"w{draw % 3}", self.scene.event())
        elif kind == "buffer":
            handle = self._try(self.store.read, None, "data", "w0")
        else:
            handle = self.suspend.register(1 + draw % 2, self._event, "test")
        if handle is not None:
            self.held.append((kind, handle))

    @staticmethod
    def _try(call: Any, *arguments: Any) -> Any:
        """Quotas, missing nodes and what a suspend ended are refusals; nothing else is."""
        refusals = (NTSTATUS.OBJECT_NAME_NOT_FOUND, NTSTATUS.UNSUCCESSFUL, NTSTATUS.RETRY,
                    NTSTATUS.INSUFFICIENT_RESOURCES, NTSTATUS.QUOTA_EXCEEDED)  # fmt: skip
        try:
            return call(*arguments)
        except NtStatusError as error:
            assert error.status in refusals, error
            return None

    def use(self, draw: int) -> None:
        if not self.held:
            return
        kind, handle = self.held[draw % len(self.held)]
        if kind in ("unbound", "inter-domain", "virq"):
            (self.evtchn.trigger, self.evtchn.send)[draw % 2](handle)
            self.evtchn.unmask(handle, False, bool(draw & 4))
            self.evtchn.wait(handle, draw % 3, -10)
        elif kind == "transaction":
            self._try(self.store.printf, handle, "data", f"w{draw % 3}", "%u", draw)
        else:
            self._try(self.store.printf, None, "data", f"w{draw % 3}", "%u", draw)

    def close(self, draw: int) -> None:
        if not self.held:
            return
        kind, handle = self.held.pop(draw % len(self.held))
        if kind in ("unbound", "inter-domain", "virq"):
            self.evtchn.close(handle)
        elif kind == "transaction":
            self._try(self.store.transaction_end, handle, bool(draw % 2))
        elif kind == "watch":
            self.store.watch_remove(handle)
        elif kind == "buffer":
            self.store.free(handle)
        else:
            self.suspend.deregister(handle)

    def end(self) -> None:
        while self.held:
            self.close(0)
        for view in (self.store, self.evtchn, self.suspend):
            view.release()


def run(steps: list[tuple[str, int]], *, fifo: bool, forget: bool = False) -> None:
    world = make_world()
    try:
        scene = make(world, fifo=fifo)
        driver = Driver(scene)
        world.loop.run()
        renewed = False
        for step, draw in steps:
            if step in OPENS:
                driver.open(step, draw)
            elif step in ("use", "close"):
                getattr(driver, step)(draw)
            elif step == "run":
                world.loop.run()
            else:
                # Without FIFO the old ports of a domain that is resumed uninformed stay: Xen
                # has them, and nothing tells the guest which they were.
                cancelled = step == "cancel" or not fifo
                renewed = renewed or not cancelled
                scene.resume(int(cancelled))
        if forget:
            driver.held.clear()
        driver.end()
        world.loop.run()
        # The store's and the console's, which the toolstack bound; a reset keeps those that
        # a daemon has at its end.
        assert world.guest.evtchn.bound() == (1 if fifo else 2)
        connection = world.server.connections
        if not renewed:
            assert [one for conn in connections_of_guest(connection) for one in conn.watches] == []
            assert [t for conn in connections_of_guest(connection) for t in conn.transactions] == []
        assert scene.store.watches() == scene.store.transactions() == []
        assert scene.store.leftovers() == scene.evtchn.leftovers() == []
        assert scene.suspend.leftovers() == []
        assert len(scene.evtchn._waits) == 0
    finally:
        world.hypervisor.close()


def connections_of_guest(connections: dict[Any, Any]) -> list[Any]:
    return [one for one in connections.values() if getattr(one, "domid", 0) == 1]


@given(STEPS, st.booleans())
def test_any_order_leaves_nothing(steps: list[tuple[str, int]], fifo: bool) -> None:
    run(steps, fifo=fifo)


@pytest.mark.parametrize("kind", OPENS)
def test_what_is_left_is_found(kind: str) -> None:
    """Each kind, opened and forgotten by its driver."""
    steps = [("watch", 0), ("run", 0), ("use", 0), ("close", 0), (kind, 0)]
    with pytest.raises(LocalProtocolError, match="is released with a?"):
        run(steps, fifo=False, forget=True)
