"""The hash over what an interface receives, as XenVif configures it at its backend (frontend.c).

Each change resends everything, in the driver's order; what the backend refuses leaves the
settings as they were. The driver's calls wait for the backend. Here they answer with a
HashRequest, whose status is PENDING until the last answer: a handler lets its listener be
told, and who stands outside the loop runs it.
"""

from __future__ import annotations

import enum
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.netif import XEN_NETIF_CTRL_TYPE as TYPE
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import HypercallError
from xenpv.vif.controller import Controller
from xenpv.vif.packet import HashAlgorithm, HashType

if TYPE_CHECKING:
    from xenpv.vif.frontend import Frontend

KEY_SIZE: Final = 40  # XENVIF_VIF_HASH_KEY_SIZE
MAPPING_MAX: Final = 128  # XENVIF_FRONTEND_MAXIMUM_HASH_MAPPING_SIZE
REQUESTS_MAX: Final = 16  # that wait for each other; the driver's callers wait for its lock
WIRE_TYPES: Final = 0xF  # XEN_NETIF_CTRL_HASH_TYPE_*: a type's bit lies one below XenVif's

# A field of HashSettings and its new value.
Change = tuple[str, Any]


@attrs.frozen(kw_only=True)
class HashSettings:
    """`types` is a mask of 1 << HashType; `mapping` has a queue for each entry."""

    algorithm: HashAlgorithm = HashAlgorithm.UNSPECIFIED
    types: int = 0
    key: bytes = bytes(KEY_SIZE)
    mapping: tuple[int, ...] = ()

    @property
    def is_toeplitz(self) -> bool:
        return self.algorithm is HashAlgorithm.TOEPLITZ


class HashListener(Protocol):
    """Who asked for a change, inside a handler."""

    def hash_changed(self, request: HashRequest) -> None:
        """It ended: `status` says how. Another change may be asked for. Must not raise."""


@attrs.define(eq=False)
class HashRequest:
    """A call that is under way: PENDING, then the status that the driver's call returns.

    CANCELLED: the connection went away meanwhile.
    """

    operation: str
    changes: deque[Change]  # those to be made yet, each with a sequence of its own
    listener: HashListener | None = None
    processors: tuple[int, ...] = ()  # of queue 0, 1 and on, where its events go then
    status: NTSTATUS = NTSTATUS.PENDING

    def check(self) -> None:
        """NtStatusError if it failed."""
        if self.status not in (NTSTATUS.SUCCESS, NTSTATUS.PENDING):
            raise NtStatusError(self.status, operation=f"VIF {self.operation}")


class Step(enum.Enum):
    """What is sent for one change."""

    ALGORITHM = "algorithm"
    MAPPING_SIZE = "mapping size"
    MAPPING = "mapping"
    KEY = "key"
    TYPES = "types"
    CAPABILITIES = "capabilities"  # XenNet asks for them next, and gets them from here


AFTER: Final[Mapping[Step, Step | None]] = {
    Step.ALGORITHM: Step.MAPPING_SIZE,
    Step.MAPPING_SIZE: Step.MAPPING,
    Step.MAPPING: Step.KEY,
    Step.KEY: Step.TYPES,
    Step.TYPES: Step.CAPABILITIES,
    Step.CAPABILITIES: None,
}


class ReceiveHash:
    """Of one interface, over all its connections. `settings` are those in force.

    `capabilities` is a mask of 1 << HashType, None until a backend of this connection said.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self.settings = HashSettings()
        self.capabilities: int | None = None
        self.controller: Controller | None = None
        self._attached = False
        self._wanted = self.settings
        self._step: Step | None = None  # what an answer is waited for
        self._requests: deque[HashRequest] = deque()  # the first is under way
        self._enabling: HashRequest | None = None

    # life

    def connect(self, domid: int) -> None:
        """A control ring; HypercallError as Controller."""
        frontend = self._frontend
        name = f"vif{frontend.number}-ctrl"
        self.controller = Controller(frontend.bus, domid, name, self, frontend.break_off)
        self.controller.connect()

    def keys(self) -> list[tuple[str, str | None]]:
        """Keys of the frontend's directory; none without a ring."""
        return [] if self.controller is None else [*self.controller.keys()]

    def attach(self) -> None:
        """Both ends are connected, with or without a ring.

        The new backend may have fewer queues; an entry that leads beyond them is taken modulo
        their number, where the driver could not be enabled any more.
        """
        self._attached = True
        self.capabilities = None
        count = len(self._frontend.queues)
        if any(queue >= count for queue in self.settings.mapping):
            mapping = tuple(queue % count for queue in self.settings.mapping)
            self.settings = attrs.evolve(self.settings, mapping=mapping)
        if self.controller is not None:
            self.controller.enable()

    def detach(self) -> None:
        """The connection ends, or the backend is believed no more: what waits is cancelled."""
        self._attached = False
        self._step = None
        if self.controller is not None:
            self.controller.disable()
        self._enabling = None
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.status = NTSTATUS.CANCELLED
            if request.listener is not None:
                request.listener.hash_changed(request)

    def suspend(self) -> None:
        """Everything of the old connection is void; `release` comes when its backend is gone."""
        self.detach()
        if self.controller is not None:
            self.controller.suspend()

    def release(self) -> list[tuple[int, int]]:
        """(ref, pfn) of what the backend still maps."""
        self.detach()
        controller, self.controller = self.controller, None
        return [] if controller is None else controller.release()

    # what is asked

    def enable(self) -> None:
        """Send the settings in force; a refusal disables the interface."""
        if self.controller is None and not self.settings.is_toeplitz:
            return
        self._enabling = self._ask(HashRequest("Enable", deque()))

    def set_algorithm(self, algorithm: int, listener: HashListener | None = None) -> HashRequest:
        """NOT_SUPPORTED: none of HashAlgorithm, or TOEPLITZ where it cannot be."""
        operation = "ReceiverSetHashAlgorithm"
        if algorithm not in tuple(HashAlgorithm):
            raise _failure(NTSTATUS.NOT_SUPPORTED, operation, f"algorithm {algorithm}")
        if algorithm == HashAlgorithm.TOEPLITZ:
            if len(self._frontend.queues) == 1:
                raise _failure(NTSTATUS.NOT_SUPPORTED, operation, "there is one queue")
            if self._frontend.parameters.frontend_disable_toeplitz:
                raise _failure(NTSTATUS.NOT_SUPPORTED, operation, "Toeplitz is disabled")
        changes: deque[Change] = deque([("algorithm", HashAlgorithm(algorithm))])
        return self._ask(HashRequest(operation, changes, listener))

    def update_parameters(
        self, types: int, key: bytes, listener: HashListener | None = None
    ) -> HashRequest:
        """First the types, then the key. INVALID_PARAMETER: a key that has not KEY_SIZE bytes."""
        operation = "ReceiverUpdateHashParameters"
        if len(key) != KEY_SIZE:
            raise _failure(NTSTATUS.INVALID_PARAMETER, operation, f"a key of {len(key)} bytes")
        known = types & WIRE_TYPES << HashType.IPV4
        changes: deque[Change] = deque([("types", known), ("key", bytes(key))])
        return self._ask(HashRequest(operation, changes, listener))

    def update_mapping(
        self, processors: Sequence[int], listener: HashListener | None = None
    ) -> HashRequest:
        """A queue for each CPU that is named, in the order of their naming.

        INVALID_PARAMETER: more CPUs than queues, or more entries than MAPPING_MAX.
        """
        operation = "UpdateHashMapping"
        queues = list(dict.fromkeys(processors))
        if len(processors) > MAPPING_MAX or len(queues) > len(self._frontend.queues):
            reason = f"{len(processors)} entries of {len(queues)} CPUs"
            raise _failure(NTSTATUS.INVALID_PARAMETER, operation, reason)
        at = {processor: queue for queue, processor in enumerate(queues)}
        mapping = tuple(at[processor] for processor in processors)
        changes: deque[Change] = deque([("mapping", mapping)])
        return self._ask(HashRequest(operation, changes, listener, tuple(queues)))

    def query_capabilities(self) -> int:
        """A mask of 1 << HashType. NOT_SUPPORTED unless a backend hashes for us now."""
        if self.capabilities is None or not self.settings.is_toeplitz:
            operation = "ReceiverQueryHashCapabilities"
            raise _failure(NTSTATUS.NOT_SUPPORTED, operation, "nothing is hashed")
        return self.capabilities

    def accepts(self, kind: int) -> bool:
        """Whether a HashType that the backend tells was asked for."""
        settings = self.settings
        return settings.is_toeplitz and bool(settings.types >> kind & 1)

    # the sequence

    def _ask(self, request: HashRequest) -> HashRequest:
        if not self._attached:
            raise _failure(NTSTATUS.NOT_SUPPORTED, request.operation, "it is not connected")
        if len(self._requests) == REQUESTS_MAX:
            reason = f"{REQUESTS_MAX} changes wait"
            raise _failure(NTSTATUS.INSUFFICIENT_RESOURCES, request.operation, reason)
        self._requests.append(request)
        if len(self._requests) == 1:
            listener, request.listener = request.listener, None
            self._begin()  # who asks sees what ended at once in what is returned
            request.listener = listener
            request.check()
        return request

    def _begin(self) -> None:
        """The next change of the first request."""
        request = self._requests[0]
        self._wanted = self.settings
        if request.changes:
            field, value = request.changes.popleft()
            self._wanted = attrs.evolve(self.settings, **{field: value})
        if self.controller is not None:
            self._send(Step.ALGORITHM)
        elif self._wanted.is_toeplitz:
            self._end(NTSTATUS.NOT_SUPPORTED)
        else:
            self._done()

    def _send(self, step: Step) -> None:
        self._step = step
        try:
            SENDS[step](self)
        except NtStatusError as error:
            self._end(error.status)

    def _put(self, kind: TYPE, *data: int) -> None:
        assert self.controller is not None
        self.controller.put(kind, *data)

    def _lend(self, data: bytes) -> int:
        assert self.controller is not None
        return self.controller.lend(data)

    def _send_algorithm(self) -> None:
        none = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        toeplitz = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
        self._put(TYPE.SET_HASH_ALGORITHM, toeplitz if self._wanted.is_toeplitz else none)

    def _send_mapping_size(self) -> None:
        self._put(TYPE.SET_HASH_MAPPING_SIZE, len(self._wanted.mapping))

    def _send_mapping(self) -> None:
        mapping = self._wanted.mapping
        ref = self._lend(array("I", mapping).tobytes())
        self._put(TYPE.SET_HASH_MAPPING, ref, len(mapping), 0)

    def _send_key(self) -> None:
        key = self._wanted.key
        self._put(TYPE.SET_HASH_KEY, self._lend(key), len(key))

    def _send_types(self) -> None:
        self._put(TYPE.SET_HASH_FLAGS, self._wanted.types >> HashType.IPV4)

    def _send_capabilities(self) -> None:
        self._put(TYPE.GET_HASH_FLAGS)

    def answered(self, status: NTSTATUS, data: int) -> None:
        """The backend's answer to the step that was sent."""
        step = self._step
        assert step is not None
        assert self.controller is not None
        self._frontend.quarantined += self.controller.take_back()
        if step is Step.CAPABILITIES:
            if status is NTSTATUS.SUCCESS:
                self.capabilities = (data & WIRE_TYPES) << HashType.IPV4
        elif status is not NTSTATUS.SUCCESS:
            self._end(status)
            return
        following = AFTER[step] if self._wanted.is_toeplitz else None
        if following is None or (following is Step.CAPABILITIES and self.capabilities is not None):
            self._done()
        else:
            self._send(following)

    def _done(self) -> None:
        """One change is made."""
        self.settings = self._wanted
        if self._requests[0].changes:
            self._begin()
        else:
            self._end(NTSTATUS.SUCCESS)

    def _end(self, status: NTSTATUS) -> None:
        """The first request is over; the next one begins."""
        self._step = None
        request = self._requests.popleft()
        request.status = status
        if status is NTSTATUS.SUCCESS:
            self._bind(request.processors)
        enabling = request is self._enabling
        if enabling:
            self._enabling = None
        if self._requests:
            self._begin()
        if enabling and status is not NTSTATUS.SUCCESS:
            self._frontend.hash_failed(status)
        if request.listener is not None:
            request.listener.hash_changed(request)

    def _bind(self, processors: Sequence[int]) -> None:
        """The events of a queue go to the CPU that its entries name, if that takes any."""
        bus = self._frontend.bus
        for queue, processor in zip(self._frontend.queues, processors, strict=False):
            for poller in queue.pollers:
                try:
                    bus.evtchn.bind(poller.channel, processor)
                except (NtStatusError, HypercallError) as error:
                    bus.log(f"xenvif: {queue.name}: {error}\n")


SENDS: Final[Mapping[Step, Callable[[ReceiveHash], None]]] = {
    Step.ALGORITHM: ReceiveHash._send_algorithm,
    Step.MAPPING_SIZE: ReceiveHash._send_mapping_size,
    Step.MAPPING: ReceiveHash._send_mapping,
    Step.KEY: ReceiveHash._send_key,
    Step.TYPES: ReceiveHash._send_types,
    Step.CAPABILITIES: ReceiveHash._send_capabilities,
}


def _failure(status: NTSTATUS, operation: str, reason: str) -> NtStatusError:
    return NtStatusError(status, reason, operation=f"VIF {operation}")
