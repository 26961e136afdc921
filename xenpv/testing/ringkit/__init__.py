"""A ring kit for protocols that xenpv does not know: one's own struct, or another of Xen's headers.

    ECHO = RingProtocol.from_cdef("echoif", TEXT, request="echo_request",
                                  response="echo_response", device="vecho")
    with ring_world(ECHO, EchoFrontend, EchoBackend) as world:
        ...

docs/howto/own-protocol.md goes through it; examples/own_protocol.py is a whole protocol.
"""

from __future__ import annotations

from xenpv.testing.ringkit.bytedrivers import ByteBackend, ByteFrontend
from xenpv.testing.ringkit.bytering import ByteBack, ByteFront, ByteRingProtocol, check_byte_ring
from xenpv.testing.ringkit.declaration import Declaration
from xenpv.testing.ringkit.drivers import RingBackend, RingFrontend
from xenpv.testing.ringkit.hunting import find_bugs, hunts_of
from xenpv.testing.ringkit.overlay import target_of
from xenpv.testing.ringkit.protocol import RingProtocol
from xenpv.testing.ringkit.rawbytes import RawByteBack, RawByteFront
from xenpv.testing.ringkit.rawends import RawRingBack, RawRingFront
from xenpv.testing.ringkit.rings import BackRing, FrontRing
from xenpv.testing.ringkit.suite import RingScene, RingSuite, Traffic
from xenpv.testing.ringkit.world import RingWorld, ring_world, user_backend, user_frontend

__all__ = [
    "BackRing",
    "ByteBack",
    "ByteBackend",
    "ByteFront",
    "ByteFrontend",
    "ByteRingProtocol",
    "Declaration",
    "FrontRing",
    "RawByteBack",
    "RawByteFront",
    "RawRingBack",
    "RawRingFront",
    "RingBackend",
    "RingFrontend",
    "RingProtocol",
    "RingScene",
    "RingSuite",
    "RingWorld",
    "Traffic",
    "check_byte_ring",
    "find_bugs",
    "hunts_of",
    "ring_world",
    "target_of",
    "user_backend",
    "user_frontend",
]
