"""An image that fails where it is told to, as a host's disk does.

What must survive it: a request answered with an error, a failed SRB, and an image in which every
sector is as it was or as it was written.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.host.imageio import Image, ImageError, ImageShortError, ImageUnsupportedError

OPERATIONS: Final = ("read", "write", "flush", "discard")


@attrs.define(kw_only=True, eq=False)
class Fault:
    """I/Os of kind `operation` that touch a byte of [start, end) fail; a flush always does.

    `error`: the host's errno. `done`: bytes that are transferred before it fails, which makes a
    read a short one. `times`: how often; None: always. `fired` counts.
    """

    operation: str
    error: int = errno.EIO
    start: int = 0
    end: int | None = None
    done: int = 0
    times: int | None = None
    fired: int = 0

    def hits(self, operation: str, offset: int, length: int) -> bool:
        if operation != self.operation or (self.times is not None and self.fired >= self.times):
            return False
        if operation == "flush":
            return True
        return offset + length > self.start and (self.end is None or offset < self.end)


class FaultyImage:
    """`image` with faults, the first that hits first."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.faults: list[Fault] = []
        self.buffer: None = None  # what is copied past us cannot fail
        self.sector_size: int = image.sector_size
        self.physical_sector_size: int = image.physical_sector_size
        self.writable: bool = image.writable

    def fail(
        self,
        operation: str,
        error: int = errno.EIO,
        *,
        start: int = 0,
        end: int | None = None,
        done: int = 0,
        times: int | None = None,
    ) -> Fault:
        """From now on; what it returns can be taken off `faults`. LocalProtocolError."""
        if operation not in OPERATIONS:
            raise LocalProtocolError(f"operation {operation!r}: expected one of {OPERATIONS}")
        fault = Fault(
            operation=operation, error=error, start=start, end=end, done=done, times=times
        )
        self.faults.append(fault)
        return fault

    def _fault(self, operation: str, offset: int, length: int) -> Fault | None:
        for fault in self.faults:
            if fault.hits(operation, offset, length):
                fault.fired += 1
                return fault
        return None

    @property
    def size_bytes(self) -> int:
        """That of the image, which may be resized."""
        return self.image.size_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        fault = self._fault("read", offset, buffer.nbytes)
        if fault is None:
            self.image.read_into(buffer, offset)
            return
        if fault.done:
            self.image.read_into(buffer[: fault.done], offset)
            raise ImageShortError(f"read at {offset}: {fault.done} of {buffer.nbytes} bytes")
        raise _error(fault, f"read at {offset}")

    def write_from(self, buffer: memoryview, offset: int) -> None:
        fault = self._fault("write", offset, buffer.nbytes)
        if fault is None:
            self.image.write_from(buffer, offset)
            return
        if fault.done:
            self.image.write_from(buffer[: fault.done], offset)
        raise _error(fault, f"write at {offset}")

    def flush(self) -> None:
        """EOPNOTSUPP is what an image that cannot flush at all says."""
        fault = self._fault("flush", 0, 0)
        if fault is not None and fault.error == errno.EOPNOTSUPP:
            raise ImageUnsupportedError("flush: Operation not supported")
        if fault is not None:
            raise _error(fault, "flush")
        self.image.flush()

    def discard(self, offset: int, length: int) -> bool:
        """EOPNOTSUPP is no error, but what a file system without holes says."""
        fault = self._fault("discard", offset, length)
        if fault is None:
            return self.image.discard(offset, length)
        if fault.error == errno.EOPNOTSUPP:
            return False
        raise _error(fault, f"discard at {offset}")

    def close(self) -> None:
        self.image.close()


def _error(fault: Fault, what: str) -> ImageError:
    return ImageError(f"{what}: {os.strerror(fault.error)}")
