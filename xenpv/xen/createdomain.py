"""What a domain is created with: struct xen_domctl_createdomain of public/domctl.h."""

from __future__ import annotations

from enum import IntFlag

import attrs


class CDF(IntFlag):
    """XEN_DOMCTL_CDF_*: flags of createdomain."""

    hvm = 1 << 0
    hap = 1 << 1
    s3_integrity = 1 << 2
    oos_off = 1 << 3
    xs_domain = 1 << 4
    iommu = 1 << 5
    nested_virt = 1 << 6
    vpmu = 1 << 7
    trap_unmapped_accesses = 1 << 8


@attrs.frozen(kw_only=True)
class CreateDomain:
    """struct xen_domctl_createdomain. A negative number of frames asks for Xen's default.

    `max_grant_version` is grant_opts' mask. `has_32bit_shinfo` is what a guest decides for
    itself when it sets up its hypercalls; here it is known from the start.
    """

    max_vcpus: int
    flags: int = int(CDF.hvm | CDF.hap)
    max_evtchn_port: int = 1023
    max_grant_frames: int = -1
    max_maptrack_frames: int = -1
    max_grant_version: int = 2
    handle: bytes = bytes(16)
    has_32bit_shinfo: bool = False
