"""What a frontend hears of its backend's directory while it is connected (FrontendBackend).

A disk that changed its size, and a toolstack that wants the disk back. Whatever is written there,
and however often, is one run of one task (XSA-349).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.devicetree import Irp
from xenpv.bus.handshake import parse_flag, parse_state
from xenpv.errors import PeerProtocolError, StoreError
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend

EJECT_RETRIES_MAX: Final = 10
UNPLUG_FAILED: Final = "Unplug failed due to open handle(s)!"


class BackendWatch:
    """Fed by the handshake's watch. `listens`, from Connect to Close: what changes is news."""

    __slots__ = ("_ejected", "_frontend", "_task", "listens")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._ejected = False  # the key is written once in a directory's life
        self.listens = False
        self._task: Task = frontend.domain.task(f"{frontend.path} backend", self._changed)

    def heard(self, path: bytes) -> None:
        """An event of the watch: of any key, since a resize may write any."""
        del path
        if self.listens:
            self._task.wake()

    def remove(self) -> None:
        """Hear of nothing any more."""
        self.listens = False

    def moved(self) -> None:
        """To another host, which made the directories anew."""
        self.remove()
        self._ejected = False

    def look(self) -> None:
        """Something may have changed that nobody looked at."""
        self._task.wake()

    def forget(self) -> None:
        """Its frontend goes."""
        self.remove()
        self._frontend.domain.forget(self._task)

    def _log(self, error: StoreError) -> None:
        self._frontend.bus.log(f"xenvbd: {self._frontend.path}: {error}\n")

    def _changed(self) -> None:
        frontend = self._frontend
        if not frontend.is_up:
            return
        try:
            if frontend.handshake.backend_state() is State.CLOSING:
                self._closes()
            elif not frontend.broken:
                frontend.read_disk()
        except PeerProtocolError as error:
            frontend.fail(str(error))
        except StoreError as error:
            self._log(error)

    def _closes(self) -> None:
        frontend = self._frontend
        if frontend.personality.closes_with_backend:
            frontend.target.pnp.request(Irp.EJECT)
        elif self._is_eject_asked():
            self._ejected = True
            frontend.target.pnp.request_eject()

    def _is_eject_asked(self) -> bool:
        """Both the backend's state and `online`, of one moment; `ejected` is written with them."""
        frontend = self._frontend
        store, backend = frontend.store, frontend.backend_path
        for _ in range(EJECT_RETRIES_MAX):
            transaction = store.transaction_start()
            try:
                online = store.get(f"{backend}/online", transaction)
                state = store.get(f"{backend}/state", transaction)
                asked = not parse_flag(online) and parse_state(state) is State.CLOSING
                if asked and not self._ejected:
                    store.write(f"{frontend.path}/ejected", "1", transaction)
            except StoreError:
                store.transaction_end(transaction, commit=False)
                raise
            if store.transaction_end(transaction, commit=asked) or not asked:
                return asked
        return False

    def eject_failed(self) -> None:
        """Somebody has the disk open: the system did not let it go."""
        frontend = self._frontend
        try:
            frontend.store.write(f"{frontend.path}/error", UNPLUG_FAILED)
        except StoreError as error:
            self._log(error)
