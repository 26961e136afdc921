"""Grant table operations and status (grant_table.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from xenpv.abi._kernel import lib


class GNTTABOP(IntEnum):
    """Sub-operations of grant_table_op."""

    map_grant_ref = lib.GNTTABOP_map_grant_ref
    unmap_grant_ref = lib.GNTTABOP_unmap_grant_ref
    setup_table = lib.GNTTABOP_setup_table
    dump_table = lib.GNTTABOP_dump_table
    transfer = lib.GNTTABOP_transfer
    copy = lib.GNTTABOP_copy
    query_size = lib.GNTTABOP_query_size
    unmap_and_replace = lib.GNTTABOP_unmap_and_replace
    set_version = lib.GNTTABOP_set_version
    get_status_frames = lib.GNTTABOP_get_status_frames
    get_version = lib.GNTTABOP_get_version
    swap_grant_ref = lib.GNTTABOP_swap_grant_ref
    cache_flush = lib.GNTTABOP_cache_flush


class GNTST(IntEnum):
    """Status of one grant operation, negative if it failed."""

    okay = lib.GNTST_okay
    general_error = lib.GNTST_general_error
    bad_domain = lib.GNTST_bad_domain
    bad_gntref = lib.GNTST_bad_gntref
    bad_handle = lib.GNTST_bad_handle
    bad_virt_addr = lib.GNTST_bad_virt_addr
    bad_dev_addr = lib.GNTST_bad_dev_addr
    no_device_space = lib.GNTST_no_device_space
    permission_denied = lib.GNTST_permission_denied
    bad_page = lib.GNTST_bad_page
    bad_copy_arg = lib.GNTST_bad_copy_arg
    address_too_big = lib.GNTST_address_too_big
    eagain = lib.GNTST_eagain
    no_space = lib.GNTST_no_space


class GNTMAP(IntFlag):
    """Flags of `gnttab_map_grant_ref`."""

    device_map = lib.GNTMAP_device_map
    host_map = lib.GNTMAP_host_map
    readonly = lib.GNTMAP_readonly
    application_map = lib.GNTMAP_application_map
    contains_pte = lib.GNTMAP_contains_pte
