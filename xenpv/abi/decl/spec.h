/*
 * Sizes and offsets as the protocols fix them, written as numbers: the compiler refuses
 * the module where a declaration moved. cffi does not read this file.
 */
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), "size of " #type)
#define AT(type, field, offset) \
    _Static_assert(offsetof(type, field) == (offset), "offset of " #type "." #field)

/* io/ring.h: 64 bytes of header, then a power of two of slots in the rest of the page */
#define RING(type, slot, slots) \
    AT(type, req_prod, 0); AT(type, req_event, 4); AT(type, rsp_prod, 8); \
    AT(type, rsp_event, 12); AT(type, pvt, 16); AT(type, __pad, 20); AT(type, ring, 64); \
    SIZE(type, 64 + (slot) * (slots)); \
    _Static_assert(64 + (slot) * (slots) <= 4096 && 64 + (slot) * 2 * (slots) > 4096, \
                   "slots of one page in " #type)

RING(struct netif_tx_sring, 12, 256);
RING(struct netif_rx_sring, 8, 256);
RING(struct xen_netif_ctrl_sring, 16, 128);
RING(struct blkif_sring, 112, 32);
RING(struct blkif_sring_x86_32, 108, 32);

/* io/netif.h */
SIZE(struct netif_tx_request, 12);
AT(struct netif_tx_request, gref, 0);
AT(struct netif_tx_request, offset, 4);
AT(struct netif_tx_request, flags, 6);
AT(struct netif_tx_request, id, 8);
AT(struct netif_tx_request, size, 10);
SIZE(struct netif_tx_response, 4);
AT(struct netif_tx_response, status, 2);
SIZE(struct netif_rx_request, 8);
AT(struct netif_rx_request, gref, 4);
SIZE(struct netif_rx_response, 8);
AT(struct netif_rx_response, offset, 2);
AT(struct netif_rx_response, flags, 4);
AT(struct netif_rx_response, status, 6);
SIZE(struct netif_extra_info, 8);
AT(struct netif_extra_info, flags, 1);
AT(struct netif_extra_info, u.gso.size, 2);
AT(struct netif_extra_info, u.gso.type, 4);
AT(struct netif_extra_info, u.gso.features, 6);
AT(struct netif_extra_info, u.mcast.addr, 2);
AT(struct netif_extra_info, u.hash.type, 2);
AT(struct netif_extra_info, u.hash.algorithm, 3);
AT(struct netif_extra_info, u.hash.value, 4);
SIZE(struct netif_extra_info_v2026, 8);
AT(struct netif_extra_info_v2026, u.xdp.headroom, 2);
SIZE(struct xen_netif_ctrl_request, 16);
AT(struct xen_netif_ctrl_request, type, 2);
AT(struct xen_netif_ctrl_request, data, 4);
SIZE(struct xen_netif_ctrl_response, 12);
AT(struct xen_netif_ctrl_response, status, 4);
AT(struct xen_netif_ctrl_response, data, 8);
SIZE(struct xen_netif_gref, 8);
AT(struct xen_netif_gref, flags, 4);
AT(struct xen_netif_gref, status, 6);

/* io/blkif.h */
SIZE(struct blkif_request_segment, 8);
AT(struct blkif_request_segment, first_sect, 4);
AT(struct blkif_request_segment, last_sect, 5);
#define BLKIF(abi, shift, request, discard, indirect, response, entry) \
    SIZE(struct blkif_request##abi, request); \
    AT(struct blkif_request##abi, nr_segments, 1); \
    AT(struct blkif_request##abi, handle, 2); \
    AT(struct blkif_request##abi, id, 8 - (shift)); \
    AT(struct blkif_request##abi, sector_number, 16 - (shift)); \
    AT(struct blkif_request##abi, seg, 24 - (shift)); \
    SIZE(struct blkif_request_discard##abi, discard); \
    AT(struct blkif_request_discard##abi, flag, 1); \
    AT(struct blkif_request_discard##abi, handle, 2); \
    AT(struct blkif_request_discard##abi, id, 8 - (shift)); \
    AT(struct blkif_request_discard##abi, sector_number, 16 - (shift)); \
    AT(struct blkif_request_discard##abi, nr_sectors, 24 - (shift)); \
    SIZE(struct blkif_request_indirect##abi, indirect); \
    AT(struct blkif_request_indirect##abi, indirect_op, 1); \
    AT(struct blkif_request_indirect##abi, nr_segments, 2); \
    AT(struct blkif_request_indirect##abi, id, 8 - (shift)); \
    AT(struct blkif_request_indirect##abi, sector_number, 16 - (shift)); \
    AT(struct blkif_request_indirect##abi, handle, 24 - (shift)); \
    AT(struct blkif_request_indirect##abi, indirect_grefs, 28 - (shift)); \
    SIZE(struct blkif_response##abi, response); \
    AT(struct blkif_response##abi, operation, 8); \
    AT(struct blkif_response##abi, status, 10); \
    SIZE(union blkif_sring_entry##abi, entry)
BLKIF(, 0, 112, 32, 64, 16, 112);
BLKIF(_x86_32, 4, 108, 28, 64, 12, 108);
AT(struct blkif_request_indirect_x86_32, pad, 56);

/* io/xs_wire.h, io/console.h */
SIZE(struct xsd_sockmsg, 16);
AT(struct xsd_sockmsg, req_id, 4);
AT(struct xsd_sockmsg, tx_id, 8);
AT(struct xsd_sockmsg, len, 12);
#define STORE_RING(type) \
    AT(type, rsp, 1024); AT(type, req_cons, 2048); AT(type, req_prod, 2052); \
    AT(type, rsp_cons, 2056); AT(type, rsp_prod, 2060); AT(type, server_features, 2064); \
    AT(type, connection, 2068); AT(type, error, 2072)
STORE_RING(struct xenstore_domain_interface);
SIZE(struct xenstore_domain_interface, 2076);
STORE_RING(struct xenstore_domain_interface_v2026);
AT(struct xenstore_domain_interface_v2026, evtchn_port, 2076);
SIZE(struct xenstore_domain_interface_v2026, 2080);
#define CONSOLE_RING(type) \
    AT(type, out, 1024); AT(type, in_cons, 3072); AT(type, in_prod, 3076); \
    AT(type, out_cons, 3080); AT(type, out_prod, 3084)
CONSOLE_RING(struct xencons_interface);
SIZE(struct xencons_interface, 3088);
CONSOLE_RING(struct xencons_interface_v2026);
AT(struct xencons_interface_v2026, connection, 3088);

/* grant_table.h */
SIZE(struct grant_entry_v1, 8);
AT(struct grant_entry_v1, domid, 2);
AT(struct grant_entry_v1, frame, 4);
SIZE(union grant_entry_v2, 16);
AT(union grant_entry_v2, full_page.frame, 8);
AT(union grant_entry_v2, sub_page.page_off, 4);
AT(union grant_entry_v2, sub_page.length, 6);
AT(union grant_entry_v2, sub_page.frame, 8);
AT(union grant_entry_v2, transitive.trans_domid, 4);
AT(union grant_entry_v2, transitive.gref, 8);
SIZE(grant_status_t, 2);
SIZE(struct gnttab_map_grant_ref, 32);
AT(struct gnttab_map_grant_ref, flags, 8);
AT(struct gnttab_map_grant_ref, ref, 12);
AT(struct gnttab_map_grant_ref, dom, 16);
AT(struct gnttab_map_grant_ref, status, 18);
AT(struct gnttab_map_grant_ref, handle, 20);
AT(struct gnttab_map_grant_ref, dev_bus_addr, 24);
SIZE(struct gnttab_unmap_grant_ref, 24);
AT(struct gnttab_unmap_grant_ref, dev_bus_addr, 8);
AT(struct gnttab_unmap_grant_ref, handle, 16);
AT(struct gnttab_unmap_grant_ref, status, 20);
SIZE(struct gnttab_copy, 40);
AT(struct gnttab_copy, source.domid, 8);
AT(struct gnttab_copy, source.offset, 10);
AT(struct gnttab_copy, dest, 16);
AT(struct gnttab_copy, len, 32);
AT(struct gnttab_copy, flags, 34);
AT(struct gnttab_copy, status, 36);
SIZE(struct gnttab_copy_x86_32, 24);
AT(struct gnttab_copy_x86_32, source.domid, 4);
AT(struct gnttab_copy_x86_32, source.offset, 6);
AT(struct gnttab_copy_x86_32, dest, 8);
AT(struct gnttab_copy_x86_32, len, 16);
AT(struct gnttab_copy_x86_32, flags, 18);
AT(struct gnttab_copy_x86_32, status, 20);
SIZE(struct gnttab_setup_table, 24);
AT(struct gnttab_setup_table, nr_frames, 4);
AT(struct gnttab_setup_table, status, 8);
AT(struct gnttab_setup_table, frame_list, 16);
SIZE(struct gnttab_setup_table_x86_32, 16);
AT(struct gnttab_setup_table_x86_32, frame_list, 12);
SIZE(struct gnttab_transfer, 24);
AT(struct gnttab_transfer, domid, 8);
AT(struct gnttab_transfer, ref, 12);
AT(struct gnttab_transfer, status, 16);
SIZE(struct gnttab_transfer_x86_32, 16);
SIZE(struct gnttab_query_size, 16);
AT(struct gnttab_query_size, nr_frames, 4);
AT(struct gnttab_query_size, max_nr_frames, 8);
AT(struct gnttab_query_size, status, 12);
SIZE(struct gnttab_get_status_frames, 16);
AT(struct gnttab_get_status_frames, dom, 4);
AT(struct gnttab_get_status_frames, status, 6);
AT(struct gnttab_get_status_frames, frame_list, 8);
SIZE(struct gnttab_get_status_frames_x86_32, 12);
SIZE(struct gnttab_swap_grant_ref, 12);
SIZE(struct gnttab_get_version, 8);
SIZE(struct gnttab_set_version, 4);

/* event_channel.h */
SIZE(struct evtchn_alloc_unbound, 8);
AT(struct evtchn_alloc_unbound, remote_dom, 2);
AT(struct evtchn_alloc_unbound, port, 4);
SIZE(struct evtchn_bind_interdomain, 12);
AT(struct evtchn_bind_interdomain, remote_port, 4);
AT(struct evtchn_bind_interdomain, local_port, 8);
SIZE(struct evtchn_bind_virq, 12);
SIZE(struct evtchn_bind_ipi, 8);
SIZE(struct evtchn_status, 24);
AT(struct evtchn_status, port, 4);
AT(struct evtchn_status, status, 8);
AT(struct evtchn_status, vcpu, 12);
AT(struct evtchn_status, u.interdomain.dom, 16);
AT(struct evtchn_status, u.interdomain.port, 20);
SIZE(struct evtchn_init_control, 24);
AT(struct evtchn_init_control, offset, 8);
AT(struct evtchn_init_control, vcpu, 12);
AT(struct evtchn_init_control, link_bits, 16);
SIZE(struct evtchn_expand_array, 8);
SIZE(struct evtchn_reset, 2);
SIZE(struct evtchn_fifo_control_block, 72);
AT(struct evtchn_fifo_control_block, head, 8);

/* xen.h, arch-x86/xen.h: what every domain shares with Xen */
SIZE(struct vcpu_time_info, 32);
AT(struct vcpu_time_info, tsc_timestamp, 8);
AT(struct vcpu_time_info, system_time, 16);
AT(struct vcpu_time_info, tsc_to_system_mul, 24);
AT(struct vcpu_time_info, tsc_shift, 28);
AT(struct vcpu_time_info, flags, 29);
SIZE(struct vcpu_info, 64);
AT(struct vcpu_info, evtchn_upcall_mask, 1);
AT(struct vcpu_info, evtchn_pending_sel, 8);
AT(struct vcpu_info, arch, 16);
AT(struct vcpu_info, time, 32);
SIZE(struct vcpu_info_x86_32, 64);
AT(struct vcpu_info_x86_32, evtchn_upcall_mask, 1);
AT(struct vcpu_info_x86_32, evtchn_pending_sel, 4);
AT(struct vcpu_info_x86_32, arch, 8);
AT(struct vcpu_info_x86_32, time, 32);
AT(struct shared_info, evtchn_pending, 0x800);
AT(struct shared_info, evtchn_mask, 0xA00);
AT(struct shared_info, wc_version, 0xC00);
AT(struct shared_info, wc_sec, 0xC04);
AT(struct shared_info, wc_nsec, 0xC08);
AT(struct shared_info, wc_sec_hi, 0xC0C);
AT(struct shared_info_x86_32, evtchn_pending, 0x800);
AT(struct shared_info_x86_32, evtchn_mask, 0x880);
AT(struct shared_info_x86_32, wc_version, 0x900);
AT(struct shared_info_x86_32, wc_sec, 0x904);
AT(struct shared_info_x86_32, wc_nsec, 0x908);
AT(struct shared_info_x86_32, arch, 0x90C);
AT(struct shared_info_x86_32, arch.wc_sec_hi, 0x924);
SIZE(struct start_info, 1168);
AT(struct start_info, nr_pages, 32);
AT(struct start_info, shared_info, 40);
AT(struct start_info, flags, 48);
AT(struct start_info, store_mfn, 56);
AT(struct start_info, store_evtchn, 64);
AT(struct start_info, console.domU.mfn, 72);
AT(struct start_info, console.domU.evtchn, 80);
AT(struct start_info, pt_base, 88);
AT(struct start_info, nr_pt_frames, 96);
AT(struct start_info, mfn_list, 104);
AT(struct start_info, mod_start, 112);
AT(struct start_info, mod_len, 120);
AT(struct start_info, cmd_line, 128);
AT(struct start_info, first_p2m_pfn, 1152);
AT(struct start_info, nr_p2m_frames, 1160);
SIZE(struct hvm_start_info, 56);

/* vcpu.h, sched.h, memory.h, version.h, hvm/hvm_op.h */
SIZE(struct vcpu_runstate_info, 48);
AT(struct vcpu_runstate_info, state_entry_time, 8);
AT(struct vcpu_runstate_info, time, 16);
SIZE(struct vcpu_runstate_info_x86_32, 44);
AT(struct vcpu_runstate_info_x86_32, state_entry_time, 4);
AT(struct vcpu_runstate_info_x86_32, time, 12);
AT(struct vcpu_set_singleshot_timer, flags, 8);
AT(struct vcpu_register_vcpu_info, offset, 8);
SIZE(struct sched_poll, 24);
AT(struct sched_poll, nr_ports, 8);
AT(struct sched_poll, timeout, 16);
SIZE(struct sched_poll_x86_32, 16);
AT(struct sched_poll_x86_32, timeout, 8);
SIZE(struct sched_remote_shutdown, 8);
SIZE(struct sched_watchdog, 8);
SIZE(struct xen_memory_reservation, 32);
AT(struct xen_memory_reservation, nr_extents, 8);
AT(struct xen_memory_reservation, extent_order, 16);
AT(struct xen_memory_reservation, mem_flags, 20);
AT(struct xen_memory_reservation, domid, 24);
SIZE(struct xen_memory_reservation_x86_32, 20);
SIZE(struct xen_add_to_physmap, 24);
AT(struct xen_add_to_physmap, size, 2);
AT(struct xen_add_to_physmap, space, 4);
AT(struct xen_add_to_physmap, idx, 8);
AT(struct xen_add_to_physmap, gpfn, 16);
SIZE(struct xen_add_to_physmap_batch, 32);
AT(struct xen_add_to_physmap_batch, space, 2);
AT(struct xen_add_to_physmap_batch, size, 4);
AT(struct xen_add_to_physmap_batch, u, 6);
AT(struct xen_add_to_physmap_batch, idxs, 8);
AT(struct xen_add_to_physmap_batch, gpfns, 16);
AT(struct xen_add_to_physmap_batch, errs, 24);
SIZE(struct xen_remove_from_physmap, 16);
AT(struct xen_remove_from_physmap, gpfn, 8);
AT(struct xen_mem_acquire_resource, type, 2);
AT(struct xen_mem_acquire_resource, id, 4);
AT(struct xen_mem_acquire_resource, nr_frames, 8);
AT(struct xen_mem_acquire_resource, pad, 12);
AT(struct xen_mem_acquire_resource, frame, 16);
AT(struct xen_mem_acquire_resource, frame_list, 24);
SIZE(struct xen_mem_acquire_resource, 32);
SIZE(struct xen_compile_info, 144);
AT(struct xen_feature_info, submap, 4);
SIZE(struct xen_hvm_param, 16);
AT(struct xen_hvm_param, index, 4);
AT(struct xen_hvm_param, value, 8);
AT(struct xen_hvm_evtchn_upcall_vector, vector, 4);

#undef SIZE
#undef AT
#undef RING
#undef BLKIF
#undef STORE_RING
#undef CONSOLE_RING
