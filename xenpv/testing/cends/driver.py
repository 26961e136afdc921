"""A C driver in the place of a Python one: what the worlds of `xenpv.testing.ends` are given."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import PeerProtocolError
from xenpv.testing.cends.answers import answer, as_frames
from xenpv.testing.cends.wire import ENTER, Blocks, Call, Entry, Failure
from xenpv.testing.ends.end import End, EndTimer
from xenpv.testing.ends.port import EndPort
from xenpv.testing.ends.transfer import Operation, Transfer

if TYPE_CHECKING:
    from xenpv.back.store import BackWatch
    from xenpv.host.image import Image
    from xenpv.host.network import Frame
    from xenpv.testing.ends.blame import Place

OPERATIONS: Final = {
    Operation.READ: BLKIF_OP.READ,
    Operation.WRITE: BLKIF_OP.WRITE,
    Operation.FLUSH: BLKIF_OP.FLUSH_DISKCACHE,
    Operation.DISCARD: BLKIF_OP.DISCARD,
}
SECTOR: Final = 512


class Runtime(Protocol):
    """The C side of one end, in this process or in another."""

    @property
    def alive(self) -> bool: ...

    def enter(self, entry: Entry) -> int | Failure: ...

    def free(self) -> Blocks: ...

    def place(self, pc: int) -> Place: ...


@attrs.frozen
class Limits:
    """`steps` are accesses and basic blocks of one call; `seconds` are of CPU in one call, of a
    process of its own also of waiting for its next word.
    """

    steps: int
    seconds: float


class CDriver:
    """One end of a C driver. `resource`: a backend's image or port, a frontend's way up."""

    def __init__(
        self, start: Callable[[CDriver], Runtime], limits: Limits, end: End, resource: Any
    ) -> None:
        self.end = end
        self.domain = end._domain
        self._resource = resource
        self.limits = limits
        self.pages: dict[int, int] = {}  # own runs: first pfn and how many
        self.maps: dict[int, list[int]] = {}
        self.watches: dict[int, BackWatch] = {}
        self.timers: dict[int, EndTimer] = {}
        self.transactions: list[int] = []
        self.transfers: dict[int, Transfer] = {}
        self.nr_maps = self.nr_watches = self.nr_timers = self._nr_transfers = 0
        self.runtime = start(self)

    # what the world calls

    def probe(self) -> None:
        self._about_state(ENTER["PROBE"])

    def frontend_changed(self, state: XenbusState) -> None:
        self._about_state(ENTER["OTHEREND"], int(state))

    def backend_changed(self, state: XenbusState) -> None:
        self._about_state(ENTER["OTHEREND"], int(state))

    def receive(self, frames: Sequence[Frame]) -> None:
        """A network backend's."""
        for frame in frames:
            self._enter(ENTER["RECEIVE"], data=frame.data, size=len(frame.data))

    def send(self, frame: bytes) -> None:
        """A network frontend's."""
        self._enter(ENTER["SEND"], data=frame, size=len(frame))

    def submit(self, transfer: Transfer) -> None:
        """A block frontend's."""
        self._nr_transfers += 1
        number = self._nr_transfers
        self.transfers[number] = transfer
        writes = transfer.operation is Operation.WRITE
        self._enter(
            ENTER["SUBMIT"],
            args=(number, OPERATIONS[transfer.operation], transfer.sector),
            data=bytes(transfer.data) if writes else None,
            size=transfer.nr_sectors * SECTOR,
        )

    def close(self) -> None:
        self._enter(ENTER["REMOVE"])
        for tx_id in self.transactions:
            self.end.store._store._end(tx_id, b"F")
        runtime, blocks = self.runtime, self.runtime.free()
        if blocks.count:
            self._fail(
                runtime.place(blocks.pc),
                f"allocates {blocks.size} bytes that are not freed when its device is gone"
                + (f", and {blocks.count - 1} blocks more" if blocks.count > 1 else ""),
            )

    def _about_state(self, what: int, *args: int) -> None:
        result = self._enter(what, args=args)
        if result < 0:
            code = errno.errorcode.get(-result, str(result))
            raise PeerProtocolError(f"the driver answers {code}")

    def _enter(self, what: int, **given: Any) -> int:
        if not self.runtime.alive:
            return 0
        limits = self.limits
        try:
            result = self.runtime.enter(
                Entry(what=what, steps=limits.steps, seconds=limits.seconds, **given)
            )
        finally:
            if self.end._guard.failed is not None:
                self.runtime.free()
        if isinstance(result, Failure):
            place = self.runtime.place(result.pc)
            self.runtime.free()
            self._fail(place, result.text)
        return result

    def _fail(self, place: Place, what: str) -> NoReturn:
        self.end._guard.fail(place, what)

    # what the driver's calls need

    def answer(self, call: Call) -> tuple[int, bytes]:
        return answer(self, call)

    def refuse(self, what: str) -> NoReturn:
        self.end._guard.refuse(what)

    def handler(self, function: int, context: int) -> Callable[[], None]:
        """What the loop may call for a C function."""

        def run() -> None:
            self._enter(ENTER["HANDLER"], handler=function, context=context)

        return run

    def watcher(self, function: int, context: int) -> Callable[[str], None]:
        def run(path: str) -> None:
            data = path.encode() + b"\0"
            self._enter(
                ENTER["WATCH"], handler=function, context=context, data=data, size=len(data)
            )

        return run

    def frames(self, pfns: Iterable[int]) -> bytes:
        """Machine frames of own pages or of maps."""
        found = [self.domain.check(lib.p2m_lookup(self.domain.kernel, pfn, 1)) for pfn in pfns]
        return as_frames(found)

    def begin(self) -> int:
        """A transaction."""
        tx_id = self.end.store._store._start()
        self.transactions.append(tx_id)
        self.end._held.take("transaction", tx_id, None, f"transaction {tx_id}")
        return tx_id

    def commit(self, tx_id: int, *, abort: bool) -> None:
        """StoreError EAGAIN: it was in conflict."""
        self.end._held.drop("transaction", tx_id)
        self.transactions.remove(tx_id)
        self.end.store._store._end(tx_id, b"F" if abort else b"T")

    @property
    def image(self) -> Image:
        if (
            self._resource is None
            or isinstance(self._resource, EndPort)
            or callable(self._resource)
        ):
            self.refuse("asks for an image, and is no block backend")
        image: Image = self._resource
        return image

    @property
    def port(self) -> EndPort:
        if not isinstance(self._resource, EndPort):
            self.refuse("transmits, and is no network backend")
        return self._resource

    def take_up(self, frame: bytes) -> None:
        if not callable(self._resource):
            self.refuse("receives, and is no network frontend")
        self._resource(frame)
