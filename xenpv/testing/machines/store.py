"""A store: a tree of values, changed at once or in transactions, against a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from xenpv.errors import StoreError
from xenpv.host.xs import XsHandle
from xenpv.store.server import Xenstored
from xenpv.testing.strategies.store import PATHS

values: Final = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8)
paths: Final = st.sampled_from(PATHS)


@contextmanager
def absent() -> Iterator[None]:
    """What is not there may be said not to be."""
    try:
        yield
    except StoreError as error:
        if error.name != "ENOENT":
            raise


class StoreClient(Protocol):
    """What rules use of a privileged client; `t` is a transaction or 0."""

    def read(self, path: str, t: int = 0) -> str | None: ...

    def directory(self, path: str, t: int = 0) -> list[str]: ...

    def write(self, path: str, value: str, t: int = 0) -> None: ...

    def rm(self, path: str, t: int = 0) -> None: ...


class StoreMachine(RuleBasedStateMachine):
    """`connect` gives a client; nothing else writes below PATHS. `tree` is what there should be."""

    def __init__(self) -> None:
        super().__init__()
        self.client = self.connect()
        self.tree: dict[str, str] = {}

    def connect(self) -> StoreClient:
        """A client of the store under test, whose paths are absent: ours."""
        return XsHandle(Xenstored().connect_local("machine"))

    @rule(path=paths, value=values)
    def write(self, path: str, value: str) -> None:
        self.client.write(path, value)
        parts = path.split("/")
        for end in range(2, len(parts)):
            self.tree.setdefault("/".join(parts[:end]), "")
        self.tree[path] = value

    @rule(path=paths)
    def read(self, path: str) -> None:
        assert self.client.read(path) == self.tree.get(path), path

    @rule(path=paths)
    def directory(self, path: str) -> None:
        found: list[str] = []
        with absent():
            found = sorted(self.client.directory(path))
        below = [one for one in self.tree if one.rpartition("/")[0] == path]
        assert found == sorted(one.rpartition("/")[2] for one in below), path

    @rule(path=paths)
    def remove(self, path: str) -> None:
        """A node with all that is below it. One that is not there may be refused."""
        with absent():
            self.client.rm(path)
        for one in [one for one in self.tree if one == path or one.startswith(f"{path}/")]:
            del self.tree[one]

    def teardown(self) -> None:
        for path in PATHS:
            self.read(path)
