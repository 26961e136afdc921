"""The states of a device, for drivers under test that are about its data: connect and disconnect.

A driver may write its own `frontend_changed` or `backend_changed` instead: nothing asks for these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import XenpvError

if TYPE_CHECKING:
    from xenpv.testing.ends.end import End


class ConnectingBackend:
    """A backend that connects when its frontend is `ready`, and begins anew as often as asked.

    `features` are written at the probe. `connect` may fail half way: `disconnect` undoes what
    there is, also of nothing.
    """

    ready: ClassVar[tuple[State, ...]] = (State.INITIALISED, State.CONNECTED)
    features: ClassVar[Mapping[str, str]] = {}

    def __init__(self, end: End) -> None:
        self.end = end

    def connect(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no connect()")

    def disconnect(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no disconnect()")

    def probe(self) -> None:
        self.end.write_keys(self.features)
        self.end.switch_state(State.INIT_WAIT)

    def frontend_changed(self, state: State) -> None:
        end = self.end
        if state in self.ready:
            if end.state is not State.CONNECTED:
                self._try()
        elif state is State.INITIALISING:
            self.disconnect()
            end.switch_state(State.INIT_WAIT)
        elif state is State.CLOSING:
            end.switch_state(State.CLOSING)
        elif state in (State.CLOSED, State.UNKNOWN):
            self.disconnect()
            end.switch_state(State.CLOSED)

    def _try(self) -> None:
        try:
            self.connect()
        except XenpvError:
            self.disconnect()
            raise
        self.end.switch_state(State.CONNECTED)

    def close(self) -> None:
        self.disconnect()


class ConnectingFrontend:
    """A frontend that connects when its backend waits for it.

    `announces` is the state that it then writes, INITIALISED of a disk and CONNECTED of an
    interface. `opened` is called once both are Connected. `disconnect` undoes what `connect` did,
    and is called for nothing too.
    """

    announces: ClassVar[State] = State.INITIALISED

    def __init__(self, end: End) -> None:
        self.end = end

    def connect(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no connect()")

    def disconnect(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no disconnect()")

    def opened(self) -> None:
        """Requests may be sent."""

    def probe(self) -> None:
        """Nothing is due before the backend's first state."""

    def backend_changed(self, state: State) -> None:
        end = self.end
        if state is State.INIT_WAIT and end.state is State.INITIALISING:
            self.connect()
            end.switch_state(self.announces)
        elif state is State.CONNECTED and end.state is self.announces:
            end.switch_state(State.CONNECTED)
            self.opened()
        elif state is State.CLOSING:
            end.switch_state(State.CLOSED)
        elif state is State.CLOSED:  # the backend has let go of everything
            end.switch_state(State.CLOSED)
            self.disconnect()

    def close(self) -> None:
        self.disconnect()
