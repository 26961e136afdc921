"""A Unix socket under a path, for the server that is to be found there."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from xenpv.errors import ConfigError

MODE: Final = 0o600
PATH_BYTES_MAX: Final = 107  # sun_path, less its NUL


def listening(path: Path, *, backlog: int, taken: str, what: str = "") -> socket.socket:
    """A socket of its owner's alone that listens, and does not block.

    One that nobody listens on any more is replaced. ConfigError where it cannot be made, in the
    words `what`cannot be made; and in the words `taken` where somebody answers already.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(f"a socket's path has at most {PATH_BYTES_MAX} bytes", file=str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A socket that is bound and does not listen yet looks stale: one server at a time.
            fcntl.flock(folder, fcntl.LOCK_EX)
            _clear(path, taken)
            before = os.umask(0o777 & ~MODE)
            try:
                sock.bind(os.fspath(path))
            finally:
                os.umask(before)
            sock.listen(backlog)
        finally:
            os.close(folder)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{what}cannot be made: {error.strerror}", file=str(path)) from error
    except ConfigError:
        sock.close()
        raise
    return sock


def _clear(path: Path, taken: str) -> None:
    """Make room: remove a socket that no process listens on. ConfigError if there is another."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise ConfigError("exists and is no socket", file=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # as many as may wait for its server do
            pass
        except OSError as error:
            raise ConfigError(f"cannot be used: {error.strerror}", file=str(path)) from error
    raise ConfigError(taken, file=str(path))
