"""Where disks come from: the provider that turns the key `params` of a backend into an image.

A registered object, a raw file or a block device, or, after the name of its format and a colon,
a file that qemu-nbd serves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Protocol

from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.imageio import (
    Image,
    ImageBusyError,
    ImageError,
    ImageUnsupportedError,
    Sectors,
)
from xenpv.host.memoryimage import MemoryImage
from xenpv.host.rawimage import RawImage

__all__ = (
    "Image",
    "ImageBusyError",
    "ImageError",
    "ImageProvider",
    "ImageUnsupportedError",
    "MemoryImage",
    "RawImage",
    "Sectors",
)

# params may carry a format or a block script's type before the path; these are raw.
PREFIXES: Final = ("raw", "aio", "phy", "file")
# What host.qemunbd.FORMATS has, named here since few import that.
FORMATS: Final = ("qcow", "qcow2", "qed", "vhd", "vhdx", "vmdk")


def split(params: str) -> tuple[str, str]:
    """The format, "" for raw, and the path; of what has no known prefix all is the path."""
    prefix, colon, path = params.partition(":")
    if colon and prefix in FORMATS:
        return prefix, path
    return "", path if colon and prefix in PREFIXES else params


class FileImage(Image, Protocol):
    """An image of a file that is open here, for `holders` disks."""

    path: str
    holders: int

    def is_at(self, path: str) -> bool:
        """Whether it is open, and the file that this path names."""


class Loan:
    """A file that another host has open, for the one disk here that takes it over."""

    __slots__ = ("image", "taken")

    def __init__(self, image: FileImage) -> None:
        self.image = image
        self.taken = False

    def serves(self, path: str, writable: bool) -> bool:
        return not self.taken and self.image.is_at(path) and self.image.writable >= writable


class ImageProvider:
    """Images by the `params` of a backend directory: names registered here, else paths.

    `sectors_of`: what the sectors of a file are to be, by its path; None: as they are.
    """

    def __init__(self, sectors_of: Callable[[str], Sectors | None] | None = None) -> None:
        self._registered: dict[str, Image] = {}
        self._open: dict[str, list[FileImage]] = {}  # by path
        self._loans: dict[str, Loan] = {}
        self._sectors_of = sectors_of

    def register(self, name: str, image: Image) -> None:
        """Serve `image` to disks whose params are `name`; LocalProtocolError if it is taken.

        It stays its owner's: disks that go and come again find it open.
        """
        if name in self._registered:
            raise LocalProtocolError(f"an image is registered as {name!r}")
        self._registered[name] = image

    def is_registered(self, params: str) -> bool:
        """Whether it is an image of this process, and no file."""
        return self.registered(params) is not None

    def name_of(self, image: Image) -> str | None:
        """What an image is registered as."""
        return next((name for name, one in self._registered.items() if one is image), None)

    def registered(self, params: str) -> Image | None:
        """What was registered under a name; None for a path."""
        image = self._registered.get(params)
        if image is not None:
            return image
        kind, name = split(params)
        return None if kind else self._registered.get(name)

    def forget(self, name: str) -> None:
        """The end of a registration; who has the image open keeps it."""
        self._registered.pop(name, None)

    def open(self, params: str, writable: bool) -> Image:
        """The image of these params; raises ConfigError."""
        image = self.registered(params)
        if image is None:
            return self._open_file(*split(params), writable)
        if writable and not image.writable:
            raise ImageBusyError(f"image {params!r} is read-only: give the disk access ro")
        return image

    def _open_file(self, kind: str, path: str, writable: bool) -> FileImage:
        loan = self._loans.get(path)
        image: FileImage
        if loan is not None and loan.serves(path, writable):
            loan.taken = True
            image = loan.image
            image.holders += 1
        else:
            sectors = None if self._sectors_of is None else self._sectors_of(path)
            if kind:
                from xenpv.host.qemunbd import NbdImage

                image = NbdImage(path, kind, writable, sectors)
            else:
                image = RawImage(path, writable, sectors)
        self._open.setdefault(path, []).append(image)
        return image

    def release(self, image: Image) -> None:
        """A disk is gone: close what `open` opened for it."""
        if any(image is one for one in self._registered.values()):
            return
        path = getattr(image, "path", "")  # a forgotten registration has none
        opened = self._open.get(path, [])
        if image in opened:
            opened.remove(image)
            if not opened:
                del self._open[path]
            loan = self._loans.get(path)
            if loan is not None and loan.image is image:
                loan.taken = False
        image.close()

    def close(self) -> None:
        """Nothing is opened after this; what is still open nobody is left to release."""
        self._sectors_of = None  # who says that may be the platform, which is to be freed
        self.let_go()

    def let_go(self) -> None:
        """Close what is still open: the backends that had it are gone."""
        opened, self._open = self._open, {}
        with ExitStack() as stack:  # each, whatever the closing of another brings
            for images in opened.values():
                for image in images:
                    stack.callback(image.close)

    def lend(self, params: str, other: ImageProvider) -> None:
        """Let another host have the image too: a guest whose disk it is moves there.

        A registered one is registered there. A file that is open here for writing is not locked
        against one disk there; it is closed when neither has it any more. ConfigError if another
        image has that name there.
        """
        image = self.registered(params)
        if image is None:
            _kind, path = split(params)
            for opened in self._open.get(path, ()):
                other._loans[path] = Loan(opened)
            return
        taken = other._registered.setdefault(params, image)
        if taken is not image:
            raise ConfigError(f"another image is registered as {params!r} there")

    def check(self, params: str, writable: bool) -> None:
        """Raise the ConfigError that `open` would raise now; nothing is written or kept."""
        self.release(self.open(params, writable))
