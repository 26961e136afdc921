"""Where bytes come from: a file of raw pages, a core of a domain, a saved guest.

What a file holds is told by its first bytes. ConfigError, in one line, for one that cannot be
read or is none of these; contents beyond that are never refused.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.view.dump.kinds import KINDS, dump_page, guess, known
from xenpv.view.dump.table import ROWS_MAX, Dump, Dumps

RAW_BYTES_MAX: Final = max(one.pages for one in KINDS.values()) * 4096
HEAD: Final = 64
CORE: Final = b"\x7fELF"
SAVED: Final = b"Saved domain in xenpv format"


@attrs.frozen(kw_only=True)
class Place:
    """Pages by number, in order. `domid` None: the only domain there is."""

    pfns: tuple[int, ...]
    domid: int | None = None


@attrs.frozen(kw_only=True)
class Selection:
    """What is wanted of a source. `kind`: what raw pages, or those of `places`, are.

    `names`: what to print of what is found; all without any.
    """

    kind: str = ""
    names: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    most: int = ROWS_MAX


def chosen(found: Dumps, names: Sequence[str]) -> Dumps:
    """Those of a name: a device, a domain, a kind, or all of a name. LocalProtocolError: none."""
    if not names:
        return found
    kept = Dumps()
    for name in names:
        some = [one for one in found if is_called(one, name)]
        if not some:
            there = ", ".join(one.name for one in found) or "nothing"
            raise LocalProtocolError(f"nothing is called {name!r}: there is {there}")
        kept += [one for one in some if one not in kept]
    return kept


def is_called(one: Dump, name: str) -> bool:
    """Whether a name is one of its: `vbd/51712`, `d1`, `blkif`."""
    return name in (one.name, one.kind, *one.name.split())


def first_bytes(path: Path) -> bytes:
    """The start of a regular file. ConfigError for what is none, or cannot be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError("is a directory: expected a file or a dump socket", file=str(path))
        if not stat.S_ISREG(mode):
            raise ConfigError("is neither a file nor a socket", file=str(path))
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if not head:
        raise ConfigError("is empty: expected pages, a core or a saved guest", file=str(path))
    return head


def raw(path: Path, wanted: Selection) -> Dumps:
    """A file of pages of one kind. ConfigError: which kind, or so many bytes cannot be one."""
    try:
        with path.open("rb") as file:
            data = file.read(RAW_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if len(data) > RAW_BYTES_MAX:
        most = f"raw pages of {RAW_BYTES_MAX} bytes at most are read"
        raise ConfigError(f"is too long: {most}", file=str(path))
    if wanted.places or wanted.names:
        option = "--pfn" if wanted.places else "--ring"
        text = f"is neither a core nor a saved guest: {option} chooses of those"
        raise ConfigError(text, file=str(path))
    if not wanted.kind:
        like = guess(data)
        text = "expected --as KIND, since these bytes are raw pages"
        looks = f"; they look like {like}" if like else ""
        raise ConfigError(f"{text}{looks}; kinds are {', '.join(KINDS)}", file=str(path))
    kind = known(wanted.kind)
    assert kind is not None, "the command line knows it"
    wrong = kind.check(len(data))
    if wrong:
        raise ConfigError(wrong, file=str(path))
    return Dumps([dump_page(data, wanted.kind, path.name, most=wanted.most)])


def dumps(path: Path, wanted: Selection) -> Dumps:
    """What a file has of what is wanted. ConfigError, LocalProtocolError."""
    head = first_bytes(path)
    if wanted.kind and not wanted.places:
        return raw(path, wanted)  # whatever it looks like
    if head.startswith(CORE):
        from xenpv.view.dump import core

        return core.dumps(path, wanted)
    if head.startswith(SAVED):
        from xenpv.view.dump import saved

        return saved.dumps(path, wanted)
    return raw(path, wanted)
