"""Operations on a store, over few paths so that they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.abi.xs import XS

PATHS: Final = ("/a", "/a/b", "/a/b/c", "/a/d", "/e")
KINDS: Final = (XS.READ, XS.WRITE, XS.MKDIR, XS.RM, XS.DIRECTORY)


@attrs.frozen
class StoreOperation:
    """`value` is a WRITE's."""

    op: XS
    path: str
    value: str = ""

    @property
    def payload(self) -> bytes:
        """The request's."""
        head = self.path.encode() + b"\0"
        return head + self.value.encode() if self.op is XS.WRITE else head


def store_operations(paths: Sequence[str] = PATHS) -> SearchStrategy[StoreOperation]:
    """READ, WRITE, MKDIR, RM and DIRECTORY of these paths."""
    where = st.sampled_from(list(paths))
    values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8)
    writes = st.builds(StoreOperation, st.just(XS.WRITE), where, values)
    return writes | st.builds(StoreOperation, st.sampled_from(KINDS), where)
