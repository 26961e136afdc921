"""`xl save`: a guest is suspended, written into a file, and destroyed or resumed.

Not live: suspend first, then every page. The file has its name only when it is whole.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING

from xenpv.errors import XenpvError
from xenpv.host.libxl import LIBXL, ToolstackError
from xenpv.migration.context import capture, capture_domain
from xenpv.migration.disks import registered, write_disk
from xenpv.migration.pages import touched, write_pages
from xenpv.migration.savefile import write_head
from xenpv.migration.stream import RecordType, Writer

if TYPE_CHECKING:
    from xenpv.guest import Guest


def save(
    guest: Guest,
    path: str | Path,
    *,
    checkpoint: bool = False,
    pause: bool = False,
    trusted: Sequence[str] = (),
) -> None:
    """What Guest.save does."""
    path = Path(path)
    with _beside(path) as file:
        try:
            suspended = guest.platform.toolstack.domsuspend.suspend(guest.created)
        except ToolstackError:
            _resume(guest)
            raise
        try:
            _write(guest, file, trusted)
            file.close()
            Path(file.name).replace(path)
        except (XenpvError, OSError) as error:
            _resume(guest)
            code = LIBXL.FAIL
            if isinstance(error, ToolstackError):
                code = guest.platform.toolstack.domsuspend.failure_code(suspended, error)
            raise ToolstackError(f"save of {guest.name!r} to {path}: {error}", code) from error
    if not (checkpoint or pause):
        guest.destroy()
        return
    if pause:
        guest.created.domain.pause()
    guest.resume()


def _resume(guest: Guest) -> None:
    """xl does it after any failure; it is refused for a guest that did not suspend."""
    try:
        guest.resume()
    except ToolstackError:
        return


@contextmanager
def _beside(path: Path) -> Iterator[BufferedWriter]:
    """A new file in the directory of `path`; none is left where it did not take that name.

    ToolstackError if there can be none, before anything else happens.
    """
    # A device or a pipe would be replaced by the file.
    if path.exists() and not path.is_file():
        what = "it is a directory" if path.is_dir() else "it exists and is no file"
        raise ToolstackError(f"cannot save to {path}: {what}")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ToolstackError(f"cannot save to {path}: {error.strerror}") from None
    os.close(descriptor)
    try:
        with Path(name).open("wb") as file:
            yield file
    finally:
        Path(name).unlink(missing_ok=True)


def _write(guest: Guest, file: BufferedWriter, trusted: Sequence[str]) -> None:
    made = guest.created
    write_head(file.write, made.config, made.domid)
    writer = Writer(file.write)
    writer.write(RecordType.STATIC_DATA_END)
    writer.write_json(RecordType.DOMAIN_CONTEXT, capture_domain(made.domain))
    write_pages(writer, made.domain, touched(made.domain))
    writer.write_json(RecordType.GUEST_CONTEXT, capture(guest, trusted=trusted))
    images = registered(guest.platform.images, made.config.disks)
    for target, image in images.items():
        write_disk(writer, target, image)
    writer.end()
