"""`drivers/N`: which drivers a guest runs, an entry each (win-xenbus fdo.c, FdoSetDistribution).

An entry is `<vendor> <product> <version> <attributes>`. A release build has no attributes and
keeps the space before them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from xenpv.bus.store import StoreInterface
from xenpv.errors import StoreError

VENDOR_NAME: Final = "Xen Project"  # the build's
VERSION: Final = "9.1.0.0"
ATTRIBUTES: Final = ""  # "(DEBUG)" in a checked build
ENTRIES_MAX: Final = 256


def vendor(name: str = VENDOR_NAME) -> str:
    """A vendor's name as a word: what is not alphanumeric becomes an underscore."""
    return "".join(one if one.isascii() and one.isalnum() else "_" for one in name)


VENDOR: Final = vendor()


def entry(product: str) -> str:
    """What stands in a product's entry."""
    return f"{VENDOR} {product} {VERSION} {ATTRIBUTES}"


def claim(store: StoreInterface, product: str) -> str | None:
    """Write `drivers/<first absent of 0-255>`, and return its path.

    None, and nothing is written, if all are there or one can be neither read nor is missing;
    None too if the write is refused.
    """
    try:
        for index in range(ENTRIES_MAX):
            key = f"drivers/{index}"
            if _read(store, key) is None:
                store.write(key, entry(product))
                return key
    except StoreError:
        return None
    return None


def _read(store: StoreInterface, key: str) -> str | None:
    try:
        return store.read(key)
    except StoreError as error:
        if error.name != "ENOENT":
            raise
        return None


def clear(store: StoreInterface, product: str, *, exact: bool = False) -> None:
    """Remove every entry whose first two words are our vendor's and the product's.

    The vendor as a prefix, or `exact` as XENIFACE compares it; the product in any case.
    Failures are ignored.
    """
    try:
        names = store.directory("drivers")
    except StoreError:
        return
    for name in names:
        with suppress(StoreError):
            words = (store.get(f"drivers/{name}") or "").split(" ")
            ours = words[0] == VENDOR if exact else words[0].startswith(VENDOR)
            if ours and len(words) > 1 and words[1].upper() == product.upper():
                store.discard(f"drivers/{name}")
