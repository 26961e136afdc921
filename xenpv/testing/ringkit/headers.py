"""Protocols of Xen's own headers, declared: what stands in io/9pfs.h and io/pvcalls.h of Xen 4.17.

tests/peers/test_ringkit_layouts.py holds each size and offset to these headers by gcc.
"""

from __future__ import annotations

from typing import Final

from xenpv.testing.ringkit.bytering import ByteRingProtocol
from xenpv.testing.ringkit.protocol import RingProtocol

# DEFINE_XEN_FLEX_RING_AND_INTF(xen_9pfs), and the header of every 9p message (9pfs.pandoc).
NINEPFS_TEXT: Final = """
struct xen_9pfs_data_intf {
    RING_IDX in_cons, in_prod;
    uint8_t pad1[56];
    RING_IDX out_cons, out_prod;
    uint8_t pad2[56];
    RING_IDX ring_order;
    grant_ref_t ref[];
};
"""
# struct pvcalls_data_intf: the same with a word for an error of each way.
PVCALLS_DATA_TEXT: Final = """
struct pvcalls_data_intf {
    RING_IDX in_cons, in_prod, in_error;
    uint8_t pad1[52];
    RING_IDX out_cons, out_prod, out_error;
    uint8_t pad2[52];
    RING_IDX ring_order;
    grant_ref_t ref[];
};
"""
PVCALLS_TEXT: Final = """
#define PVCALLS_SOCKET 0
#define PVCALLS_CONNECT 1
#define PVCALLS_RELEASE 2
#define PVCALLS_BIND 3
#define PVCALLS_LISTEN 4
#define PVCALLS_ACCEPT 5
#define PVCALLS_POLL 6
struct xen_pvcalls_request {
    uint32_t req_id;
    uint32_t cmd;
    union {
        struct { uint64_t id; uint32_t domain, type, protocol; uint8_t pad[4]; } socket;
        struct {
            uint64_t id;
            uint8_t addr[28];
            uint32_t len, flags;
            grant_ref_t ref;
            uint32_t evtchn;
            uint8_t pad[4];
        } connect;
        struct { uint64_t id; uint8_t reuse; uint8_t pad[7]; } release;
        struct { uint64_t id; uint8_t addr[28]; uint32_t len; } bind;
        struct { uint64_t id; uint32_t backlog; uint8_t pad[4]; } listen;
        struct { uint64_t id, id_new; grant_ref_t ref; uint32_t evtchn; } accept;
        struct { uint64_t id; } poll;
        struct { uint8_t dummy[56]; } dummy;
    } u;
};
struct xen_pvcalls_response {
    uint32_t req_id;
    uint32_t cmd;
    int32_t ret;
    uint32_t pad;
    union {
        struct { uint64_t id; } socket, connect, release, bind, listen, accept, poll;
        struct { uint8_t dummy[8]; } dummy;
    } u;
};
"""

NINEPFS: Final = ByteRingProtocol.from_cdef(
    "xen_9pfs", NINEPFS_TEXT, interface="xen_9pfs_data_intf", device="9pfs"
)
# Its rings are made by commands (PVCALLS_CONNECT, PVCALLS_ACCEPT), not by keys in the store.
PVCALLS_DATA: Final = ByteRingProtocol.from_cdef(
    "pvcalls", PVCALLS_DATA_TEXT, interface="pvcalls_data_intf", device="pvcalls"
)
PVCALLS: Final = RingProtocol.from_cdef(
    "xen_pvcalls",
    PVCALLS_TEXT,
    request="xen_pvcalls_request",
    response="xen_pvcalls_response",
    device="pvcalls",
    id="req_id",
    event_channel="port",
)
