"""Receive side scaling and receive hashing: the two requests that ask for a Toeplitz hash."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net.ndis import OBJECT_TYPE_DEFAULT, NdisStatus
from xenpv.net.oid import OidError

if TYPE_CHECKING:
    from xenpv.net.properties import Properties
    from xenpv.vif.interface import VifInterface

# NDIS_RECEIVE_HASH_PARAMETERS: header, flags, information, size and offset of the key behind it.
RECEIVE_HASH: Final = Struct("<BBHIIHxxI")
ENABLE_HASH: Final = 1
TOEPLITZ: Final = 1  # NdisHashFunctionToeplitz, the lowest byte of the information
KEY_MAX: Final = 40


@attrs.define(eq=False)
class Rss:
    """Of one adapter. `is_supported`: the interface hashes, and the property *RSS is set."""

    is_supported: bool = False
    hash_enabled: bool = False  # by RECEIVE_HASH
    scale_enabled: bool = False  # by RECEIVE_SCALE_PARAMETERS
    types: int = 0  # NDIS_HASH_*: bits of the information above the function
    key: bytes = b""

    def initialize(self, vif: VifInterface, properties: Properties) -> None:
        """InitializeEx: find out whether the interface takes TOEPLITZ."""
        del vif, properties

    def query_receive_hash(self) -> bytes:
        """RECEIVE_HASH, with the key behind it."""
        size = RECEIVE_HASH.size
        flags = ENABLE_HASH if self.hash_enabled else 0
        header = (OBJECT_TYPE_DEFAULT, 1, size)
        information = self.types | TOEPLITZ
        return RECEIVE_HASH.pack(*header, flags, information, len(self.key), size) + self.key

    def set_receive_hash(self, vif: VifInterface, value: bytes) -> None:
        """RECEIVE_HASH; `value` has at least the bytes of RECEIVE_HASH."""
        del vif, value
        raise OidError(NdisStatus.NOT_SUPPORTED, "receive hash")

    def set_receive_scale_parameters(
        self, vif: VifInterface, properties: Properties, value: bytes
    ) -> None:
        """RECEIVE_SCALE_PARAMETERS; `value` has at least the bytes of its structure."""
        del vif, properties, value
        raise OidError(NdisStatus.NOT_SUPPORTED, "receive side scaling")
