"""Raw overlays: bytes for slots and whole examples, words near their bounds, store values."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.abi.layout import sizeof
from xenpv.testing.overlay import SIZE_MAX, load
from xenpv.testing.overlays.language import STEPS, TEXTS
from xenpv.view.rings import u32


def overlays(target: str = "blk-backend", *, max_size: int = SIZE_MAX) -> SearchStrategy[bytes]:
    """Examples for `fuzz_one(data, target)`. LocalProtocolError: an unknown target."""
    load(target)
    return st.binary(max_size=max_size)


def slots(struct: str) -> SearchStrategy[bytes]:
    """All bytes of a slot: `struct` is a name of Xen's headers, as "blkif_request"."""
    size = sizeof(struct)
    return st.binary(min_size=size, max_size=size)


def indices(base: int = 0, *, size: int = 32) -> SearchStrategy[int]:
    """Words of a ring's header, u32, around `base` and a ring of `size` entries away."""
    far = [0, *STEPS, size, size + 1, size - 1, -size]
    near = st.sampled_from([u32(base + one) for one in dict.fromkeys(far)])
    return near | st.integers(0, 0xFFFFFFFF)


def store_values() -> SearchStrategy[str]:
    """Texts for keys: numbers around their limits, what is no number, any printable text."""
    texts = [text.replace("\0", "") for text in TEXTS]
    printable = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
    return st.sampled_from(list(dict.fromkeys(texts))) | st.text(printable, max_size=40)
