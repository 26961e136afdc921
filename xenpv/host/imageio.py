"""What a block backend reads and writes, and how that fails. Offsets and lengths are bytes."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from xenpv.errors import ConfigError, XenpvError

SECTOR: Final = 512
SECTOR_MAX: Final = 4096  # logical: a segment of blkif is within a page
PHYSICAL_MAX: Final = 1 << 16


class ImageError(XenpvError):
    """The host could not do an I/O on an image: a short read, EIO, ENOSPC, or it is read-only."""


class ImageShortError(ImageError):
    """A read got fewer bytes than it asked for, since there are no more."""


class ImageUnsupportedError(ImageError):
    """An image has no such operation: EOPNOTSUPP, now and later."""


class ImageBusyError(ConfigError):
    """Somebody else has it, or it may not be written: what a block script calls `busy`."""


class Image(Protocol):
    """What blkback needs of a disk. Every method but `close` raises ImageError.

    `buffer` is the disk itself where it lies in memory, for copies without a detour, and
    None elsewhere; who has it need not call `read_into` and `write_from`.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def sector_size(self) -> int:
        """Logical: what offsets and lengths must be multiples of."""

    @property
    def physical_sector_size(self) -> int: ...

    @property
    def writable(self) -> bool: ...

    @property
    def buffer(self) -> memoryview | None: ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from `offset` on. ImageShortError: the image ends before."""

    def write_from(self, buffer: memoryview, offset: int) -> None:
        """Write the whole buffer at `offset`."""

    def flush(self) -> None:
        """Everything written so far is on stable storage when this returns."""

    def discard(self, offset: int, length: int) -> bool:
        """The range is no longer of use, and reads zero; False if that is not supported."""

    def close(self) -> None:
        """Give it back; a second call does nothing."""


class Sectors(NamedTuple):
    """What a host makes of an image, as a loop device does: bytes of a logical sector, and of a
    physical one.
    """

    logical: int
    physical: int

    @classmethod
    def of(cls, logical: int, physical: int = 0) -> Sectors:
        """Checked: powers of two, 512 to 4,096, and from there to 65,536. `physical` 0: as logical.

        ConfigError for others.
        """
        physical = physical or logical
        for size in (logical, physical):
            if size < SECTOR or size & (size - 1):
                raise ConfigError(
                    f"a sector of {size} bytes: expected a power of two from {SECTOR}"
                )
        if logical > SECTOR_MAX:
            raise ConfigError(f"a sector of {logical} bytes: expected at most {SECTOR_MAX}")
        if not logical <= physical <= PHYSICAL_MAX:
            raise ConfigError(
                f"a physical sector of {physical} bytes: expected {logical} to {PHYSICAL_MAX}"
            )
        return cls(logical, physical)

    def within(self, least: Sectors, name: str) -> Sectors:
        """These, on something whose own are `least`; ConfigError if that cannot be."""
        if self.logical < least.logical:
            raise ConfigError(
                f"disk {name} has sectors of {least.logical} bytes, which cannot be given as "
                f"sectors of {self.logical}"
            )
        return Sectors(self.logical, max(self.physical, least.physical))
