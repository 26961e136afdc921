"""A running platform that answers `xenpv dump PATH`: read-only, between two tasks.

    with DumpSocket(path) as served:
        served.join(xen)
        xen.run()

A client sends one line, MAGIC and a JSON object that says what it wants (`request_of`), and gets
a line `ok` or `error`, then the text or the document. It is outside of the model: no task runs
for it, and no journal has it. One that is slow is waited for at most CLIENT_S, once.
"""

from __future__ import annotations

import json
import os
import select
import socket
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.store.unixsocket import listening
from xenpv.view.dump.kinds import KINDS, dump_page
from xenpv.view.dump.source import Place, Selection, chosen
from xenpv.view.dump.table import FORMS, ROWS_ALL, ROWS_MAX, Dumps

if TYPE_CHECKING:
    from xenpv.platform import Platform

MAGIC: Final = "xenpv-dump-1"
REQUEST_BYTES_MAX: Final = 4096
ANSWER_BYTES_MAX: Final = 64 << 20
CLIENT_S: Final = 1.0  # the host's: what a run waits for a client
WAIT_S: Final = 60.0  # what a client waits for a run that is in the middle of a task
BACKLOG: Final = 8
NAMES_MAX: Final = 64


# the client


def request_of(wanted: Selection, *, form: str) -> bytes:
    """`form`: one of FORMS."""
    asked = {
        "form": form,
        "kind": wanted.kind,
        "names": list(wanted.names),
        "places": [[one.domid, list(one.pfns)] for one in wanted.places],
        "all": wanted.most > ROWS_MAX,
    }
    return f"{MAGIC} {json.dumps(asked)}\n".encode()


@attrs.frozen
class Answer:
    """What a run said. `wrong`: something in it is."""

    text: str
    wrong: bool


def ask(path: Path, wanted: Selection, *, form: str) -> Answer:
    """Ask the run behind a socket. ConfigError: there is none, it refuses, or it is no such one."""
    request = request_of(wanted, form=form)
    if len(request) > REQUEST_BYTES_MAX:
        raise ConfigError("too much is asked for at once", file=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        try:
            sock.connect(os.fspath(path))
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            data = _received(sock)
        except ConnectionRefusedError:
            text = "nobody answers there: its run is over, and the file can be removed"
            raise ConfigError(text, file=str(path)) from None
        except TimeoutError:
            text = f"no answer in {WAIT_S:g} s: its run is inside of one task, or it is no run's"
            raise ConfigError(text, file=str(path)) from None
        except OSError as error:
            text = f"cannot be asked: {error.strerror or error}"
            raise ConfigError(text, file=str(path)) from None
    head, _, body = data.partition(b"\n")
    text = body.decode("utf-8", "backslashreplace")
    if head == f"{MAGIC} error".encode():
        raise ConfigError(text.strip(), file=str(path))
    if head not in (f"{MAGIC} ok".encode(), f"{MAGIC} wrong".encode()):
        raise ConfigError("is not the dump socket of a run", file=str(path))
    return Answer(text, head.endswith(b"wrong"))


def _received(sock: socket.socket) -> bytes:
    parts = []
    size = 0
    while data := sock.recv(1 << 16):
        parts.append(data)
        size += len(data)
        if size > ANSWER_BYTES_MAX:
            raise OSError(None, f"it sends more than {ANSWER_BYTES_MAX} bytes")
    return b"".join(parts)


# the server


class DumpSocket:
    """The socket `path`, mode 0600, and who answers there. It is removed at the end.

    One that nobody listens on is replaced. ConfigError where it cannot be made, as for one that
    a run answers on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._platform: Platform | None = None
        self._socket = listening(
            self.path, backlog=BACKLOG, taken="another run answers there", what="the dump socket "
        )
        self._inode = self.path.lstat().st_ino
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def join(self, platform: Platform) -> None:
        """Answer for it, between its tasks from now on."""
        self._platform = platform
        platform.loop.between = self.serve

    def fileno(self) -> int:
        """For whoever sleeps and can be woken by a client."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer the clients that wait; nothing happens without any."""
        while self._poll.poll(0):
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                client.settimeout(CLIENT_S)
                try:
                    # A request is sent at once; who sends it in pieces is not waited for again.
                    client.sendall(self._answer(client.recv(2 * REQUEST_BYTES_MAX)))
                except OSError:
                    continue  # it is slow, or gone

    def _answer(self, request: bytes) -> bytes:
        try:
            wanted, form = _wanted(request)
            found = self._found(wanted)
        except LocalProtocolError as error:
            return f"{MAGIC} error\n{error}".encode()
        result = "wrong" if found.wrong and not form.startswith("list") else "ok"
        return f"{MAGIC} {result}\n{found.written(form)}\n".encode()

    def _found(self, wanted: Selection) -> Dumps:
        from xenpv.view.dump import live

        platform = self._platform
        if platform is None or platform.hypervisor.closed:
            raise LocalProtocolError("there is no platform yet or any more")
        if not wanted.places:
            return chosen(live.dump(platform, most=wanted.most), wanted.names)
        if not wanted.kind:
            raise LocalProtocolError("--pfn: expected --as KIND too")
        found = Dumps()
        for place in wanted.places:
            domid = 0 if place.domid is None else place.domid
            name = f"d{domid} pfn {place.pfns[0]:#x}"
            data = live.pages(platform, domid, place.pfns)
            found.append(dump_page(data, wanted.kind, name, most=wanted.most))
        return found

    def close(self) -> None:
        """Nobody is answered any more, and the socket is gone; a second call does nothing."""
        if self._socket.fileno() < 0:
            return
        platform, self._platform = self._platform, None
        if platform is not None and platform.loop.between == self.serve:
            platform.loop.between = None
        self._socket.close()
        try:
            # Not if somebody put another in its place meanwhile.
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        except OSError:
            return


def _wanted(request: bytes) -> tuple[Selection, str]:
    """What a client asks for, checked: it may be any program. LocalProtocolError."""
    magic, _, text = request.partition(b" ")
    if len(request) > REQUEST_BYTES_MAX:
        raise LocalProtocolError(f"expected at most {REQUEST_BYTES_MAX} bytes")
    if magic != MAGIC.encode() or not text.endswith(b"\n"):
        raise LocalProtocolError(f"expected one line of {MAGIC} and an object")
    try:
        asked: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise LocalProtocolError("expected JSON") from None
    if not isinstance(asked, dict):
        raise LocalProtocolError("expected an object")
    form, kind, names, places = (asked.get(one) for one in ("form", "kind", "names", "places"))
    if form not in FORMS or not isinstance(kind, str) or kind not in ("", *KINDS):
        raise LocalProtocolError("expected a form, and a kind that is known")
    if not isinstance(names, list) or len(names) > NAMES_MAX or not _are(str, names):
        raise LocalProtocolError(f"expected at most {NAMES_MAX} names")
    if not isinstance(places, list) or len(places) > NAMES_MAX:
        raise LocalProtocolError(f"expected at most {NAMES_MAX} places")
    wanted = Selection(
        kind=kind,
        names=tuple(names),
        places=tuple(_place(one) for one in places),
        most=ROWS_ALL if asked.get("all") is True else ROWS_MAX,
    )
    return wanted, form


def _place(asked: object) -> Place:
    if isinstance(asked, list) and len(asked) == 2 and isinstance(asked[1], list):
        domid, pfns = asked
        if (domid is None or type(domid) is int) and pfns and _are(int, pfns):
            return Place(pfns=tuple(pfns), domid=domid)
    raise LocalProtocolError("a place is [domid, [pfn, ...]]")


def _are(kind: type, values: list[Any]) -> bool:
    return all(type(one) is kind for one in values)
