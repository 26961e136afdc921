# Written by `python -m xenpv.abi.stub xenpv.abi._kernel` (make stubs); not edited by hand.
from collections.abc import Callable
from typing import Any, Final

class _DirtyLog: ...  # of a pointer that only C looks behind
class _Domain: ...  # of a pointer that only C looks behind
class _Evtchn: ...  # of a pointer that only C looks behind
class _Machine: ...  # of a pointer that only C looks behind
class _Ring: ...  # of a pointer that only C looks behind
class _Upcall: ...  # of a pointer that only C looks behind

class _FFI:
    NULL: Any
    CData: type
    CType: type
    error: type[Exception]
    def new(self, cdecl: str | Any, init: Any = ...) -> Any: ...
    def new_allocator(
        self,
        alloc: Callable[[int], Any] | None = ...,
        free: Callable[[Any], None] | None = ...,
        should_clear_after_alloc: bool = ...,
    ) -> Callable[..., Any]: ...
    def cast(self, cdecl: str | Any, value: Any) -> Any: ...
    def from_buffer(
        self, cdecl: str | Any, python_buffer: Any = ..., require_writable: bool = ...
    ) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def gc(self, cdata: Any, destructor: Callable[[Any], Any] | None, size: int = ...) -> Any: ...
    def release(self, cdata: Any) -> None: ...
    def new_handle(self, python_object: Any) -> Any: ...
    def from_handle(self, cdata: Any) -> Any: ...
    def addressof(self, cdata: Any, *fields_or_indexes: str | int) -> Any: ...
    def typeof(self, cdecl: str | Any) -> Any: ...
    def sizeof(self, cdecl: str | Any) -> int: ...
    def alignof(self, cdecl: str | Any) -> int: ...
    def offsetof(self, cdecl: str | Any, *fields_or_indexes: str | int) -> int: ...
    def getctype(self, cdecl: str | Any, replace_with: str = ...) -> str: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def integer_const(self, name: str) -> int: ...
    def callback(
        self, cdecl: str | Any, python_callable: Any = ..., error: Any = ..., onerror: Any = ...
    ) -> Any: ...
    def def_extern(
        self, name: str = ..., error: Any = ..., onerror: Any = ...
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...

class _Lib:
    ACCESS_ATOMIC: Final = 2
    ACCESS_COPY: Final = 32
    ACCESS_HYPERVISOR: Final = 16
    ACCESS_READ: Final = 0
    ACCESS_WRITE: Final = 1
    BIND_PIRQ__WILL_SHARE: Final = 1
    BLKIF_DISCARD_SECURE: Final = 1
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8
    BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
    BLKIF_OP_DISCARD: Final = 5
    BLKIF_OP_FLUSH_DISKCACHE: Final = 3
    BLKIF_OP_INDIRECT: Final = 6
    BLKIF_OP_READ: Final = 0
    BLKIF_OP_RESERVED_1: Final = 4
    BLKIF_OP_WRITE: Final = 1
    BLKIF_OP_WRITE_BARRIER: Final = 2
    BLKIF_RSP_EOPNOTSUPP: Final = -2
    BLKIF_RSP_ERROR: Final = -1
    BLKIF_RSP_OKAY: Final = 0
    BLK_REFUSED: Final = 2
    CALLBACKF_mask_events: Final = 1
    CALLBACKOP_register: Final = 0
    CALLBACKOP_unregister: Final = 1
    CALLBACKTYPE_event: Final = 0
    CALLBACKTYPE_failsafe: Final = 1
    CALLBACKTYPE_nmi: Final = 4
    CALLBACKTYPE_syscall: Final = 2
    CALLBACKTYPE_syscall32: Final = 7
    CALLBACKTYPE_sysenter: Final = 5
    CALLBACKTYPE_sysenter_deprecated: Final = 3
    CONSOLEIO_read: Final = 1
    CONSOLEIO_write: Final = 0
    DOMID_ANY: Final = 32757
    DOMID_COW: Final = 32755
    DOMID_FIRST_RESERVED: Final = 32752
    DOMID_IDLE: Final = 32767
    DOMID_INVALID: Final = 32756
    DOMID_IO: Final = 32753
    DOMID_MASK: Final = 32767
    DOMID_SELF: Final = 32752
    DOMID_XEN: Final = 32754
    EVTCHNOP_alloc_unbound: Final = 6
    EVTCHNOP_bind_interdomain: Final = 0
    EVTCHNOP_bind_ipi: Final = 7
    EVTCHNOP_bind_pirq: Final = 2
    EVTCHNOP_bind_vcpu: Final = 8
    EVTCHNOP_bind_virq: Final = 1
    EVTCHNOP_close: Final = 3
    EVTCHNOP_expand_array: Final = 12
    EVTCHNOP_init_control: Final = 11
    EVTCHNOP_reset: Final = 10
    EVTCHNOP_send: Final = 4
    EVTCHNOP_set_priority: Final = 13
    EVTCHNOP_status: Final = 5
    EVTCHNOP_unmask: Final = 9
    EVTCHNSTAT_closed: Final = 0
    EVTCHNSTAT_interdomain: Final = 2
    EVTCHNSTAT_ipi: Final = 5
    EVTCHNSTAT_pirq: Final = 3
    EVTCHNSTAT_unbound: Final = 1
    EVTCHNSTAT_virq: Final = 4
    EVTCHN_2L_NR_CHANNELS: Final = 4096
    EVTCHN_2L_NR_CHANNELS_x86_32: Final = 1024
    EVTCHN_FIFO_BUSY: Final = 28
    EVTCHN_FIFO_LINKED: Final = 29
    EVTCHN_FIFO_LINK_BITS: Final = 17
    EVTCHN_FIFO_LINK_MASK: Final = 131071
    EVTCHN_FIFO_MASKED: Final = 30
    EVTCHN_FIFO_MAX_QUEUES: Final = 16
    EVTCHN_FIFO_NR_CHANNELS: Final = 131072
    EVTCHN_FIFO_PENDING: Final = 31
    EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
    EVTCHN_FIFO_PRIORITY_MAX: Final = 0
    EVTCHN_FIFO_PRIORITY_MIN: Final = 15
    FIRST_RESERVED_GDT_BYTE: Final = 57344
    FIRST_RESERVED_GDT_ENTRY: Final = 7168
    FIRST_RESERVED_GDT_PAGE: Final = 14
    FLAT_RING3_CS32: Final = 57379
    FLAT_RING3_CS64: Final = 57395
    FLAT_RING3_DS32: Final = 57387
    FLAT_RING3_DS64: Final = 0
    FLAT_RING3_SS32: Final = 57387
    FLAT_RING3_SS64: Final = 57387
    FRAME_NONE: Final = 4294967295
    FRONT_HEADERS: Final = 2
    FRONT_ID: Final = 4
    FRONT_IDS: Final = 520
    FRONT_LENGTH_BITS: Final = 10
    FRONT_NULL: Final = 3
    FRONT_ROOM: Final = 1
    FRONT_STATUS: Final = 5
    GNTCOPY_dest_gref: Final = 2
    GNTCOPY_source_gref: Final = 1
    GNTMAP_application_map: Final = 8
    GNTMAP_contains_pte: Final = 16
    GNTMAP_device_map: Final = 1
    GNTMAP_guest_avail_mask: Final = 4294901760
    GNTMAP_host_map: Final = 2
    GNTMAP_readonly: Final = 4
    GNTST_address_too_big: Final = -11
    GNTST_bad_copy_arg: Final = -10
    GNTST_bad_dev_addr: Final = -6
    GNTST_bad_domain: Final = -2
    GNTST_bad_gntref: Final = -3
    GNTST_bad_handle: Final = -4
    GNTST_bad_page: Final = -9
    GNTST_bad_virt_addr: Final = -5
    GNTST_eagain: Final = -12
    GNTST_general_error: Final = -1
    GNTST_no_device_space: Final = -7
    GNTST_no_space: Final = -13
    GNTST_okay: Final = 0
    GNTST_permission_denied: Final = -8
    GNTTABOP_cache_flush: Final = 12
    GNTTABOP_copy: Final = 5
    GNTTABOP_dump_table: Final = 3
    GNTTABOP_get_status_frames: Final = 9
    GNTTABOP_get_version: Final = 10
    GNTTABOP_map_grant_ref: Final = 0
    GNTTABOP_query_size: Final = 6
    GNTTABOP_set_version: Final = 8
    GNTTABOP_setup_table: Final = 2
    GNTTABOP_swap_grant_ref: Final = 11
    GNTTABOP_transfer: Final = 4
    GNTTABOP_unmap_and_replace: Final = 7
    GNTTABOP_unmap_grant_ref: Final = 1
    GNTTAB_CACHE_CLEAN: Final = 1
    GNTTAB_CACHE_INVAL: Final = 2
    GNTTAB_CACHE_SOURCE_GREF: Final = 2147483648
    GNTTAB_NR_RESERVED_ENTRIES: Final = 8
    GNTTAB_RESERVED_CONSOLE: Final = 0
    GNTTAB_RESERVED_XENSTORE: Final = 1
    GTF_PAT: Final = 128
    GTF_PCD: Final = 64
    GTF_PWT: Final = 32
    GTF_accept_transfer: Final = 2
    GTF_invalid: Final = 0
    GTF_permit_access: Final = 1
    GTF_reading: Final = 8
    GTF_readonly: Final = 4
    GTF_sub_page: Final = 256
    GTF_transfer_committed: Final = 4
    GTF_transfer_completed: Final = 8
    GTF_transitive: Final = 3
    GTF_type_mask: Final = 3
    GTF_writing: Final = 16
    HVMMEM_ioreq_server: Final = 4
    HVMMEM_mmio_dm: Final = 2
    HVMMEM_ram_ro: Final = 1
    HVMMEM_ram_rw: Final = 0
    HVMMEM_unused: Final = 3
    HVMOP_altp2m: Final = 25
    HVMOP_flush_tlbs: Final = 5
    HVMOP_get_mem_type: Final = 15
    HVMOP_get_param: Final = 1
    HVMOP_get_time: Final = 10
    HVMOP_guest_request_vm_event: Final = 24
    HVMOP_pagetable_dying: Final = 9
    HVMOP_set_evtchn_upcall_vector: Final = 23
    HVMOP_set_param: Final = 0
    HVMOP_xentrace: Final = 11
    HVMPTM_delay_for_missed_ticks: Final = 0
    HVMPTM_no_delay_for_missed_ticks: Final = 1
    HVMPTM_no_missed_ticks_pending: Final = 2
    HVMPTM_one_missed_tick_pending: Final = 3
    HVMPV_apic_assist: Final = 32
    HVMPV_base_freq: Final = 1
    HVMPV_cpu_hotplug: Final = 4096
    HVMPV_crash_ctl: Final = 64
    HVMPV_ex_processor_masks: Final = 1024
    HVMPV_hcall_ipi: Final = 512
    HVMPV_hcall_remote_tlb_flush: Final = 16
    HVMPV_no_freq: Final = 2
    HVMPV_no_vp_limit: Final = 2048
    HVMPV_reference_tsc: Final = 8
    HVMPV_stimer: Final = 256
    HVMPV_synic: Final = 128
    HVMPV_time_ref_count: Final = 4
    HVM_BELOW_4G_MMIO_LENGTH: Final = 268435456
    HVM_BELOW_4G_MMIO_START: Final = 4026531840
    HVM_BELOW_4G_RAM_END: Final = 4026531840
    HVM_E820_NR_OFFSET: Final = 488
    HVM_E820_OFFSET: Final = 720
    HVM_E820_PAGE: Final = 589824
    HVM_INFO_OFFSET: Final = 2048
    HVM_INFO_PADDR: Final = 653312
    HVM_INFO_PFN: Final = 159
    HVM_MAX_VCPUS: Final = 128
    HVM_NR_PARAMS: Final = 39
    HVM_PARAM_ACPI_IOPORTS_LOCATION: Final = 19
    HVM_PARAM_ACPI_S_STATE: Final = 14
    HVM_PARAM_ALTP2M: Final = 35
    HVM_PARAM_BUFIOREQ_EVTCHN: Final = 26
    HVM_PARAM_BUFIOREQ_PFN: Final = 6
    HVM_PARAM_CALLBACK_IRQ: Final = 0
    HVM_PARAM_CALLBACK_IRQ_TYPE_MASK: Final = 18374686479671623680
    HVM_PARAM_CALLBACK_TYPE_GSI: Final = 0
    HVM_PARAM_CALLBACK_TYPE_PCI_INTX: Final = 1
    HVM_PARAM_CALLBACK_TYPE_VECTOR: Final = 2
    HVM_PARAM_CONSOLE_EVTCHN: Final = 18
    HVM_PARAM_CONSOLE_PFN: Final = 17
    HVM_PARAM_DM_DOMAIN: Final = 13
    HVM_PARAM_HPET_ENABLED: Final = 11
    HVM_PARAM_IDENT_PT: Final = 12
    HVM_PARAM_IOREQ_PFN: Final = 5
    HVM_PARAM_IOREQ_SERVER_PFN: Final = 32
    HVM_PARAM_MCA_CAP: Final = 38
    HVM_PARAM_MEMORY_EVENT_CR0: Final = 20
    HVM_PARAM_MEMORY_EVENT_CR3: Final = 21
    HVM_PARAM_MEMORY_EVENT_CR4: Final = 22
    HVM_PARAM_MEMORY_EVENT_INT3: Final = 23
    HVM_PARAM_MEMORY_EVENT_MSR: Final = 30
    HVM_PARAM_MEMORY_EVENT_SINGLE_STEP: Final = 25
    HVM_PARAM_MONITOR_RING_PFN: Final = 28
    HVM_PARAM_NESTEDHVM: Final = 24
    HVM_PARAM_NR_IOREQ_SERVER_PAGES: Final = 33
    HVM_PARAM_PAE_ENABLED: Final = 4
    HVM_PARAM_PAGING_RING_PFN: Final = 27
    HVM_PARAM_SHARING_RING_PFN: Final = 29
    HVM_PARAM_STORE_EVTCHN: Final = 2
    HVM_PARAM_STORE_PFN: Final = 1
    HVM_PARAM_TIMER_MODE: Final = 10
    HVM_PARAM_TRIPLE_FAULT_REASON: Final = 31
    HVM_PARAM_VIRIDIAN: Final = 9
    HVM_PARAM_VM86_TSS: Final = 15
    HVM_PARAM_VM86_TSS_SIZED: Final = 37
    HVM_PARAM_VM_GENERATION_ID_ADDR: Final = 34
    HVM_PARAM_VPT_ALIGN: Final = 16
    HVM_PARAM_X87_FIP_WIDTH: Final = 36
    KERNEL_E_ABORTED: Final = -1001
    KERNEL_E_FORKED: Final = -1000
    KERNEL_E_OVERFLOW: Final = -1002
    MAX_GUEST_CMDLINE: Final = 1024
    MMUEXT_CLEAR_PAGE: Final = 16
    MMUEXT_COPY_PAGE: Final = 17
    MMUEXT_FLUSH_CACHE: Final = 12
    MMUEXT_FLUSH_CACHE_GLOBAL: Final = 18
    MMUEXT_INVLPG_ALL: Final = 11
    MMUEXT_INVLPG_LOCAL: Final = 7
    MMUEXT_INVLPG_MULTI: Final = 9
    MMUEXT_MARK_SUPER: Final = 19
    MMUEXT_NEW_BASEPTR: Final = 5
    MMUEXT_NEW_USER_BASEPTR: Final = 15
    MMUEXT_PIN_L1_TABLE: Final = 0
    MMUEXT_PIN_L2_TABLE: Final = 1
    MMUEXT_PIN_L3_TABLE: Final = 2
    MMUEXT_PIN_L4_TABLE: Final = 3
    MMUEXT_SET_LDT: Final = 13
    MMUEXT_TLB_FLUSH_ALL: Final = 10
    MMUEXT_TLB_FLUSH_LOCAL: Final = 6
    MMUEXT_TLB_FLUSH_MULTI: Final = 8
    MMUEXT_UNMARK_SUPER: Final = 20
    MMUEXT_UNPIN_TABLE: Final = 4
    MMU_MACHPHYS_UPDATE: Final = 1
    MMU_NORMAL_PT_UPDATE: Final = 0
    MMU_PT_UPDATE_NO_TRANSLATE: Final = 3
    MMU_PT_UPDATE_PRESERVE_AD: Final = 2
    NETIF_RSP_DROPPED: Final = -2
    NETIF_RSP_ERROR: Final = -1
    NETIF_RSP_NULL: Final = 1
    NETIF_RSP_OKAY: Final = 0
    NETRXF_csum_blank: Final = 2
    NETRXF_data_validated: Final = 1
    NETRXF_extra_info: Final = 8
    NETRXF_gso_prefix: Final = 16
    NETRXF_more_data: Final = 4
    NETTXF_csum_blank: Final = 1
    NETTXF_data_validated: Final = 2
    NETTXF_extra_info: Final = 8
    NETTXF_more_data: Final = 4
    NET_BROADCAST: Final = 2097152
    NET_FRAGMENT: Final = 131072
    NET_GSO: Final = 64
    NET_IPV4: Final = 4
    NET_IPV6: Final = 8
    NET_IP_FAILED: Final = 512
    NET_IP_NOT_VALIDATED: Final = 1024
    NET_IP_SUCCEEDED: Final = 256
    NET_LARGE: Final = 65536
    NET_LLC_SNAP: Final = 2
    NET_MALFORMED: Final = 262144
    NET_MINE: Final = 524288
    NET_MULTICAST: Final = 1048576
    NET_OFFLOAD_IPV4_HEADER: Final = 4
    NET_OFFLOAD_IPV4_TCP: Final = 8
    NET_OFFLOAD_IPV4_UDP: Final = 16
    NET_OFFLOAD_IPV6_TCP: Final = 64
    NET_OFFLOAD_IPV6_UDP: Final = 128
    NET_OFFLOAD_NEED_VALUE: Final = 256
    NET_TAGGED: Final = 1
    NET_TCP: Final = 16
    NET_TCP_FAILED: Final = 4096
    NET_TCP_NOT_VALIDATED: Final = 8192
    NET_TCP_SUCCEEDED: Final = 2048
    NET_UDP: Final = 32
    NR_VIRQS: Final = 24
    P2M_FOREIGN: Final = 5
    P2M_GRANT_RO: Final = 4
    P2M_GRANT_RW: Final = 3
    P2M_NONE: Final = 0
    P2M_RAM: Final = 1
    P2M_XEN: Final = 6
    RAISED_KICK: Final = 2
    RAISED_NEW: Final = 1
    RAISED_POLL: Final = 4
    RUNSTATE_blocked: Final = 2
    RUNSTATE_offline: Final = 3
    RUNSTATE_runnable: Final = 1
    RUNSTATE_running: Final = 0
    SCHEDOP_block: Final = 1
    SCHEDOP_pin_override: Final = 7
    SCHEDOP_poll: Final = 3
    SCHEDOP_remote_shutdown: Final = 4
    SCHEDOP_shutdown: Final = 2
    SCHEDOP_shutdown_code: Final = 5
    SCHEDOP_watchdog: Final = 6
    SCHEDOP_yield: Final = 0
    SEGBASE_FS: Final = 0
    SEGBASE_GS_KERNEL: Final = 2
    SEGBASE_GS_USER: Final = 1
    SEGBASE_GS_USER_SEL: Final = 3
    SHUTDOWN_MAX: Final = 5
    SHUTDOWN_crash: Final = 3
    SHUTDOWN_poweroff: Final = 0
    SHUTDOWN_reboot: Final = 1
    SHUTDOWN_soft_reset: Final = 5
    SHUTDOWN_suspend: Final = 2
    SHUTDOWN_watchdog: Final = 4
    SIF_INITDOMAIN: Final = 2
    SIF_MOD_START_PFN: Final = 8
    SIF_MULTIBOOT_MOD: Final = 4
    SIF_PM_MASK: Final = 65280
    SIF_PRIVILEGED: Final = 1
    SIF_VIRT_P2M_4TOOLS: Final = 16
    UPCALL_PORTS: Final = 64
    UPDATE_AND: Final = 2
    UPDATE_EXCHANGE: Final = 3
    UPDATE_OR: Final = 1
    UVMF_ALL: Final = 4
    UVMF_FLUSHTYPE_MASK: Final = 3
    UVMF_INVLPG: Final = 2
    UVMF_LOCAL: Final = 0
    UVMF_MULTI: Final = 0
    UVMF_NONE: Final = 0
    UVMF_TLB_FLUSH: Final = 1
    VCPUOP_down: Final = 2
    VCPUOP_get_physid: Final = 12
    VCPUOP_get_runstate_info: Final = 4
    VCPUOP_initialise: Final = 0
    VCPUOP_is_up: Final = 3
    VCPUOP_register_runstate_memory_area: Final = 5
    VCPUOP_register_runstate_phys_area: Final = 14
    VCPUOP_register_vcpu_info: Final = 10
    VCPUOP_register_vcpu_time_memory_area: Final = 13
    VCPUOP_register_vcpu_time_phys_area: Final = 15
    VCPUOP_send_nmi: Final = 11
    VCPUOP_set_periodic_timer: Final = 6
    VCPUOP_set_singleshot_timer: Final = 8
    VCPUOP_stop_periodic_timer: Final = 7
    VCPUOP_stop_singleshot_timer: Final = 9
    VCPUOP_up: Final = 1
    VCPU_HVM_MODE_32B: Final = 0
    VCPU_HVM_MODE_64B: Final = 1
    VCPU_SSHOTTMR_future: Final = 1
    VDISK_CDROM: Final = 1
    VDISK_READONLY: Final = 4
    VDISK_REMOVABLE: Final = 2
    VIRQ_ARCH_0: Final = 16
    VIRQ_ARCH_1: Final = 17
    VIRQ_ARCH_2: Final = 18
    VIRQ_ARCH_3: Final = 19
    VIRQ_ARCH_4: Final = 20
    VIRQ_ARCH_5: Final = 21
    VIRQ_ARCH_6: Final = 22
    VIRQ_ARCH_7: Final = 23
    VIRQ_ARGO: Final = 11
    VIRQ_CONSOLE: Final = 2
    VIRQ_CON_RING: Final = 8
    VIRQ_DEBUG: Final = 1
    VIRQ_DEBUGGER: Final = 6
    VIRQ_DOM_EXC: Final = 3
    VIRQ_ENOMEM: Final = 12
    VIRQ_MEM_EVENT: Final = 10
    VIRQ_PCPU_STATE: Final = 9
    VIRQ_TBUF: Final = 4
    VIRQ_TIMER: Final = 0
    VIRQ_XENOPROF: Final = 7
    VIRQ_XENPMU: Final = 13
    VMASST_CMD_disable: Final = 1
    VMASST_CMD_enable: Final = 0
    VMASST_TYPE_4gb_segments: Final = 0
    VMASST_TYPE_4gb_segments_notify: Final = 1
    VMASST_TYPE_architectural_iopl: Final = 4
    VMASST_TYPE_m2p_strict: Final = 32
    VMASST_TYPE_pae_extended_cr3: Final = 3
    VMASST_TYPE_runstate_update_flag: Final = 5
    VMASST_TYPE_writable_pagetables: Final = 2
    XENCONSOLE_CONNECTED: Final = 0
    XENCONSOLE_DISCONNECTED: Final = 1
    XENFEAT_ARM_SMCCC_supported: Final = 14
    XENFEAT_NR_SUBMAPS: Final = 1
    XENFEAT_auto_translated_physmap: Final = 2
    XENFEAT_direct_mapped: Final = 17
    XENFEAT_dm_msix_all_writes: Final = 20
    XENFEAT_dom0: Final = 11
    XENFEAT_gnttab_map_avail_bits: Final = 7
    XENFEAT_highmem_assist: Final = 6
    XENFEAT_hvm_callback_vector: Final = 8
    XENFEAT_hvm_pirqs: Final = 10
    XENFEAT_hvm_safe_pvclock: Final = 9
    XENFEAT_linux_rsdp_unrestricted: Final = 15
    XENFEAT_memory_op_vnode_supported: Final = 13
    XENFEAT_mmu_pt_update_preserve_ad: Final = 5
    XENFEAT_not_direct_mapped: Final = 16
    XENFEAT_pae_pgdir_above_4gb: Final = 4
    XENFEAT_runstate_phys_area: Final = 18
    XENFEAT_supervisor_mode_kernel: Final = 3
    XENFEAT_vcpu_time_phys_area: Final = 19
    XENFEAT_writable_descriptor_tables: Final = 1
    XENFEAT_writable_page_tables: Final = 0
    XENMAPIDX_grant_table_status: Final = 2147483648
    XENMAPSPACE_dev_mmio: Final = 5
    XENMAPSPACE_gmfn: Final = 2
    XENMAPSPACE_gmfn_foreign: Final = 4
    XENMAPSPACE_gmfn_range: Final = 3
    XENMAPSPACE_grant_table: Final = 1
    XENMAPSPACE_shared_info: Final = 0
    XENMEMF_exact_node_request: Final = 131072
    XENMEMF_populate_on_demand: Final = 65536
    XENMEMF_vnode: Final = 262144
    XENMEM_RDM_ALL: Final = 1
    XENMEM_access_op: Final = 21
    XENMEM_acquire_resource: Final = 28
    XENMEM_add_to_physmap: Final = 7
    XENMEM_add_to_physmap_batch: Final = 23
    XENMEM_claim_pages: Final = 24
    XENMEM_current_reservation: Final = 3
    XENMEM_decrease_reservation: Final = 1
    XENMEM_exchange: Final = 11
    XENMEM_get_pod_target: Final = 17
    XENMEM_get_sharing_freed_pages: Final = 18
    XENMEM_get_sharing_shared_pages: Final = 19
    XENMEM_get_vnumainfo: Final = 26
    XENMEM_increase_reservation: Final = 0
    XENMEM_machine_memory_map: Final = 10
    XENMEM_machphys_compat_mfn_list: Final = 25
    XENMEM_machphys_mapping: Final = 12
    XENMEM_machphys_mfn_list: Final = 5
    XENMEM_maximum_gpfn: Final = 14
    XENMEM_maximum_ram_page: Final = 2
    XENMEM_maximum_reservation: Final = 4
    XENMEM_memory_map: Final = 9
    XENMEM_paging_op: Final = 20
    XENMEM_populate_physmap: Final = 6
    XENMEM_remove_from_physmap: Final = 15
    XENMEM_reserved_device_memory_map: Final = 27
    XENMEM_resource_grant_table: Final = 1
    XENMEM_resource_grant_table_id_shared: Final = 0
    XENMEM_resource_grant_table_id_status: Final = 1
    XENMEM_resource_ioreq_server: Final = 0
    XENMEM_resource_vmtrace_buf: Final = 2
    XENMEM_set_memory_map: Final = 13
    XENMEM_set_pod_target: Final = 16
    XENMEM_sharing_op: Final = 22
    XENNMI_register_callback: Final = 0
    XENNMI_unregister_callback: Final = 1
    XENSTORE_ABS_PATH_MAX: Final = 3072
    XENSTORE_CONNECTED: Final = 0
    XENSTORE_ERROR_COMM: Final = 1
    XENSTORE_ERROR_NONE: Final = 0
    XENSTORE_ERROR_PROTO: Final = 3
    XENSTORE_ERROR_RINGIDX: Final = 2
    XENSTORE_PAYLOAD_MAX: Final = 4096
    XENSTORE_RECONNECT: Final = 1
    XENSTORE_REL_PATH_MAX: Final = 2048
    XENSTORE_RING_SIZE: Final = 1024
    XENSTORE_SERVER_FEATURE_DOMID_ANY: Final = 8
    XENSTORE_SERVER_FEATURE_ERROR: Final = 2
    XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
    XENSTORE_SERVER_FEATURE_WATCHDEPTH: Final = 4
    XENVER_build_id: Final = 10
    XENVER_capabilities: Final = 3
    XENVER_capabilities2: Final = 12
    XENVER_changeset: Final = 4
    XENVER_changeset2: Final = 13
    XENVER_commandline: Final = 9
    XENVER_commandline2: Final = 14
    XENVER_compile_info: Final = 2
    XENVER_extraversion: Final = 1
    XENVER_extraversion2: Final = 11
    XENVER_get_features: Final = 6
    XENVER_guest_handle: Final = 8
    XENVER_pagesize: Final = 7
    XENVER_platform_parameters: Final = 5
    XENVER_version: Final = 0
    XEN_ALTP2M_disabled: Final = 0
    XEN_ALTP2M_external: Final = 2
    XEN_ALTP2M_limited: Final = 3
    XEN_ALTP2M_mixed: Final = 1
    XEN_CAPABILITIES_INFO_LEN: Final = 1024
    XEN_CHANGESET_INFO_LEN: Final = 64
    XEN_CPUID_NO_SUBLEAF: Final = 4294967295
    XEN_E2BIG: Final = 7
    XEN_EACCES: Final = 13
    XEN_EADDRINUSE: Final = 98
    XEN_EADDRNOTAVAIL: Final = 99
    XEN_EAGAIN: Final = 11
    XEN_EBADF: Final = 9
    XEN_EBADMSG: Final = 74
    XEN_EBUSY: Final = 16
    XEN_ECHILD: Final = 10
    XEN_ECONNREFUSED: Final = 111
    XEN_EDEADLK: Final = 35
    XEN_EDEADLOCK: Final = 35
    XEN_EDOM: Final = 33
    XEN_EEXIST: Final = 17
    XEN_EFAULT: Final = 14
    XEN_EILSEQ: Final = 84
    XEN_EINVAL: Final = 22
    XEN_EIO: Final = 5
    XEN_EISCONN: Final = 106
    XEN_EISDIR: Final = 21
    XEN_ELFNOTE_BSD_SYMTAB: Final = 11
    XEN_ELFNOTE_CRASH_INFO: Final = 16777217
    XEN_ELFNOTE_CRASH_REGS: Final = 16777218
    XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION: Final = 33554435
    XEN_ELFNOTE_DUMPCORE_HEADER: Final = 33554433
    XEN_ELFNOTE_DUMPCORE_NONE: Final = 33554432
    XEN_ELFNOTE_DUMPCORE_XEN_VERSION: Final = 33554434
    XEN_ELFNOTE_ENTRY: Final = 1
    XEN_ELFNOTE_FEATURES: Final = 10
    XEN_ELFNOTE_GUEST_OS: Final = 6
    XEN_ELFNOTE_GUEST_VERSION: Final = 7
    XEN_ELFNOTE_HV_START_LOW: Final = 12
    XEN_ELFNOTE_HYPERCALL_PAGE: Final = 2
    XEN_ELFNOTE_INFO: Final = 0
    XEN_ELFNOTE_INIT_P2M: Final = 15
    XEN_ELFNOTE_L1_MFN_VALID: Final = 13
    XEN_ELFNOTE_LOADER: Final = 8
    XEN_ELFNOTE_MOD_START_PFN: Final = 16
    XEN_ELFNOTE_PADDR_OFFSET: Final = 4
    XEN_ELFNOTE_PAE_MODE: Final = 9
    XEN_ELFNOTE_PHYS32_ENTRY: Final = 18
    XEN_ELFNOTE_PHYS32_RELOC: Final = 19
    XEN_ELFNOTE_SUPPORTED_FEATURES: Final = 17
    XEN_ELFNOTE_SUSPEND_CANCEL: Final = 14
    XEN_ELFNOTE_VIRT_BASE: Final = 3
    XEN_ELFNOTE_XEN_VERSION: Final = 5
    XEN_EMFILE: Final = 24
    XEN_EMLINK: Final = 31
    XEN_EMSGSIZE: Final = 90
    XEN_ENAMETOOLONG: Final = 36
    XEN_ENFILE: Final = 23
    XEN_ENOBUFS: Final = 105
    XEN_ENODATA: Final = 61
    XEN_ENODEV: Final = 19
    XEN_ENOENT: Final = 2
    XEN_ENOEXEC: Final = 8
    XEN_ENOLCK: Final = 37
    XEN_ENOMEM: Final = 12
    XEN_ENOSPC: Final = 28
    XEN_ENOSYS: Final = 38
    XEN_ENOTCONN: Final = 107
    XEN_ENOTDIR: Final = 20
    XEN_ENOTEMPTY: Final = 39
    XEN_ENOTSOCK: Final = 88
    XEN_ENXIO: Final = 6
    XEN_EOPNOTSUPP: Final = 95
    XEN_EOVERFLOW: Final = 75
    XEN_EPERM: Final = 1
    XEN_ERANGE: Final = 34
    XEN_EROFS: Final = 30
    XEN_ESRCH: Final = 3
    XEN_ETIME: Final = 62
    XEN_ETIMEDOUT: Final = 110
    XEN_EWOULDBLOCK: Final = 11
    XEN_EXDEV: Final = 18
    XEN_EXTRAVERSION_LEN: Final = 16
    XEN_HVM_DEBUGCONS_IOPORT: Final = 233
    XEN_HVM_MCA_CAP_LMCE: Final = 1
    XEN_HVM_MEMMAP_TYPE_ACPI: Final = 3
    XEN_HVM_MEMMAP_TYPE_DISABLED: Final = 6
    XEN_HVM_MEMMAP_TYPE_NVS: Final = 4
    XEN_HVM_MEMMAP_TYPE_PMEM: Final = 7
    XEN_HVM_MEMMAP_TYPE_RAM: Final = 1
    XEN_HVM_MEMMAP_TYPE_RESERVED: Final = 2
    XEN_HVM_MEMMAP_TYPE_UNUSABLE: Final = 5
    XEN_HVM_START_MAGIC_VALUE: Final = 862897528
    XEN_LEGACY_MAX_VCPUS: Final = 32
    XEN_NETIF_CTRLF_GREF_readonly: Final = 1
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: Final = 0
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: Final = 1
    XEN_NETIF_CTRL_HASH_TYPE_IPV4: Final = 1
    XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: Final = 2
    XEN_NETIF_CTRL_HASH_TYPE_IPV6: Final = 4
    XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: Final = 8
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: Final = 3
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: Final = 2
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: Final = 1
    XEN_NETIF_CTRL_STATUS_SUCCESS: Final = 0
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: Final = 9
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: Final = 10
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: Final = 8
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: Final = 1
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: Final = 4
    XEN_NETIF_CTRL_TYPE_INVALID: Final = 0
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: Final = 7
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: Final = 2
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: Final = 3
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: Final = 6
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: Final = 5
    XEN_NETIF_EXTRA_FLAG_MORE: Final = 1
    XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
    XEN_NETIF_EXTRA_TYPE_HASH: Final = 4
    XEN_NETIF_EXTRA_TYPE_MAX: Final = 5
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD: Final = 2
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL: Final = 3
    XEN_NETIF_EXTRA_TYPE_NONE: Final = 0
    XEN_NETIF_EXTRA_TYPE_XDP: Final = 5
    XEN_NETIF_GSO_TYPE_NONE: Final = 0
    XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
    XEN_NETIF_GSO_TYPE_TCPV6: Final = 2
    XEN_NETIF_MAX_TX_SIZE: Final = 65535
    XEN_NETIF_MAX_XDP_HEADROOM: Final = 32767
    XEN_NETIF_NR_SLOTS_MIN: Final = 18
    XEN_NMIREASON_io_error: Final = 1
    XEN_NMIREASON_pci_serr: Final = 2
    XEN_NMIREASON_unknown: Final = 4
    XEN_PVCLOCK_GUEST_STOPPED: Final = 2
    XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1
    XEN_RUNSTATE_UPDATE: Final = 9223372036854775808
    XEN_VGATYPE_EFI_LFB: Final = 112
    XEN_VGATYPE_TEXT_MODE_3: Final = 3
    XEN_VGATYPE_VESA_LFB: Final = 35
    XS_CONTROL: Final = 0
    XS_DEBUG: Final = 0
    XS_DIRECTORY: Final = 1
    XS_DIRECTORY_PART: Final = 22
    XS_ERROR: Final = 16
    XS_GET_DOMAIN_PATH: Final = 10
    XS_GET_FEATURE: Final = 23
    XS_GET_PERMS: Final = 3
    XS_GET_QUOTA: Final = 25
    XS_INTRODUCE: Final = 8
    XS_INVALID: Final = 65535
    XS_IS_DOMAIN_INTRODUCED: Final = 17
    XS_MKDIR: Final = 12
    XS_READ: Final = 2
    XS_RELEASE: Final = 9
    XS_RESET_WATCHES: Final = 21
    XS_RESUME: Final = 18
    XS_RM: Final = 13
    XS_SET_FEATURE: Final = 24
    XS_SET_PERMS: Final = 14
    XS_SET_QUOTA: Final = 26
    XS_SET_TARGET: Final = 19
    XS_TRANSACTION_END: Final = 7
    XS_TRANSACTION_START: Final = 6
    XS_TYPE_COUNT: Final = 23
    XS_UNWATCH: Final = 5
    XS_WATCH: Final = 4
    XS_WATCH_EVENT: Final = 15
    XS_WATCH_PATH: Final = 0
    XS_WATCH_TOKEN: Final = 1
    XS_WRITE: Final = 11
    XenbusStateClosed: Final = 6
    XenbusStateClosing: Final = 5
    XenbusStateConnected: Final = 4
    XenbusStateInitWait: Final = 2
    XenbusStateInitialised: Final = 3
    XenbusStateInitialising: Final = 1
    XenbusStateReconfigured: Final = 8
    XenbusStateReconfiguring: Final = 7
    XenbusStateUnknown: Final = 0
    _CALLBACKF_mask_events: Final = 0
    _GNTCOPY_dest_gref: Final = 1
    _GNTCOPY_source_gref: Final = 0
    _GNTMAP_application_map: Final = 3
    _GNTMAP_contains_pte: Final = 4
    _GNTMAP_device_map: Final = 0
    _GNTMAP_guest_avail0: Final = 16
    _GNTMAP_host_map: Final = 1
    _GNTMAP_readonly: Final = 2
    _GTF_PAT: Final = 7
    _GTF_PCD: Final = 6
    _GTF_PWT: Final = 5
    _GTF_reading: Final = 3
    _GTF_readonly: Final = 2
    _GTF_sub_page: Final = 8
    _GTF_transfer_committed: Final = 2
    _GTF_transfer_completed: Final = 3
    _GTF_writing: Final = 4
    _HVMPV_apic_assist: Final = 5
    _HVMPV_base_freq: Final = 0
    _HVMPV_cpu_hotplug: Final = 12
    _HVMPV_crash_ctl: Final = 6
    _HVMPV_ex_processor_masks: Final = 10
    _HVMPV_hcall_ipi: Final = 9
    _HVMPV_hcall_remote_tlb_flush: Final = 4
    _HVMPV_no_freq: Final = 1
    _HVMPV_no_vp_limit: Final = 11
    _HVMPV_reference_tsc: Final = 3
    _HVMPV_stimer: Final = 8
    _HVMPV_synic: Final = 7
    _HVMPV_time_ref_count: Final = 2
    _NETRXF_csum_blank: Final = 1
    _NETRXF_data_validated: Final = 0
    _NETRXF_extra_info: Final = 3
    _NETRXF_gso_prefix: Final = 4
    _NETRXF_more_data: Final = 2
    _NETTXF_csum_blank: Final = 0
    _NETTXF_data_validated: Final = 1
    _NETTXF_extra_info: Final = 3
    _NETTXF_more_data: Final = 2
    _VCPU_SSHOTTMR_future: Final = 0
    _XEN_NETIF_CTRLF_GREF_readonly: Final = 0
    _XEN_NETIF_CTRL_HASH_TYPE_IPV4: Final = 0
    _XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: Final = 1
    _XEN_NETIF_CTRL_HASH_TYPE_IPV6: Final = 2
    _XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: Final = 3
    _XEN_NETIF_EXTRA_FLAG_MORE: Final = 0
    _XEN_NMIREASON_io_error: Final = 0
    _XEN_NMIREASON_pci_serr: Final = 1
    _XEN_NMIREASON_unknown: Final = 2
    __HYPERVISOR_arch_0: Final = 48
    __HYPERVISOR_arch_1: Final = 49
    __HYPERVISOR_arch_2: Final = 50
    __HYPERVISOR_arch_3: Final = 51
    __HYPERVISOR_arch_4: Final = 52
    __HYPERVISOR_arch_5: Final = 53
    __HYPERVISOR_arch_6: Final = 54
    __HYPERVISOR_arch_7: Final = 55
    __HYPERVISOR_argo_op: Final = 39
    __HYPERVISOR_callback_op: Final = 30
    __HYPERVISOR_console_io: Final = 18
    __HYPERVISOR_dm_op: Final = 41
    __HYPERVISOR_domctl: Final = 36
    __HYPERVISOR_event_channel_op: Final = 32
    __HYPERVISOR_event_channel_op_compat: Final = 16
    __HYPERVISOR_fpu_taskswitch: Final = 5
    __HYPERVISOR_get_debugreg: Final = 9
    __HYPERVISOR_grant_table_op: Final = 20
    __HYPERVISOR_hvm_op: Final = 34
    __HYPERVISOR_hypfs_op: Final = 42
    __HYPERVISOR_iret: Final = 23
    __HYPERVISOR_kexec_op: Final = 37
    __HYPERVISOR_memory_op: Final = 12
    __HYPERVISOR_mmu_update: Final = 1
    __HYPERVISOR_mmuext_op: Final = 26
    __HYPERVISOR_multicall: Final = 13
    __HYPERVISOR_nmi_op: Final = 28
    __HYPERVISOR_physdev_op: Final = 33
    __HYPERVISOR_physdev_op_compat: Final = 19
    __HYPERVISOR_platform_op: Final = 7
    __HYPERVISOR_sched_op: Final = 29
    __HYPERVISOR_sched_op_compat: Final = 6
    __HYPERVISOR_set_callbacks: Final = 4
    __HYPERVISOR_set_debugreg: Final = 8
    __HYPERVISOR_set_gdt: Final = 2
    __HYPERVISOR_set_segment_base: Final = 25
    __HYPERVISOR_set_timer_op: Final = 15
    __HYPERVISOR_set_trap_table: Final = 0
    __HYPERVISOR_stack_switch: Final = 3
    __HYPERVISOR_sysctl: Final = 35
    __HYPERVISOR_tmem_op: Final = 38
    __HYPERVISOR_update_descriptor: Final = 10
    __HYPERVISOR_update_va_mapping: Final = 14
    __HYPERVISOR_update_va_mapping_otherdomain: Final = 22
    __HYPERVISOR_vcpu_op: Final = 24
    __HYPERVISOR_vm_assist: Final = 21
    __HYPERVISOR_xen_version: Final = 17
    __HYPERVISOR_xenoprof_op: Final = 31
    __HYPERVISOR_xenpmu_op: Final = 40
    __HYPERVISOR_xsm_op: Final = 27
    __XEN_LATEST_INTERFACE_VERSION__: Final = 265728
    abi_index: Any
    def back_final_check(self, ring: _Ring, /) -> int: ...
    def back_inflight(self, ring: _Ring, /) -> int: ...
    def back_push(self, ring: _Ring, responses: Any, n: int, /) -> int: ...
    def back_take(self, ring: _Ring, requests: Any, max: int, req_size: int, /) -> int: ...
    def blk_answer(self, blk_pass: Any, n: int, /) -> int: ...
    def blk_copy(
        self, blk_pass: Any, first: int, end: int, places: Any, local: Any, local_size: int, /
    ) -> int: ...
    def blk_file(self, blk_pass: Any, first: int, end: int, fd: int, size: int, /) -> int: ...
    def blk_indirect(
        self, blk_pass: Any, i: int, sectors: int, readonly: int, alignment: int, /
    ) -> int: ...
    def blk_take(self, blk_pass: Any, /) -> int: ...
    def checksum_internet(self, data: Any, size: int, initial: int, /) -> int: ...
    def dirty_log_free(self, dirty_log: _DirtyLog, /) -> None: ...
    def dirty_log_new(self, domain: _Domain, /) -> _DirtyLog: ...
    def dirty_log_read(self, dirty_log: _DirtyLog, from_: int, pfns: Any, max: int, /) -> int: ...
    def dirty_log_sent(self, dirty_log: _DirtyLog, pfns: Any, count: int, /) -> int: ...
    def domain_add_xen_frame(self, domain: _Domain, gpfn: int, frame: int, /) -> int: ...
    def domain_alloc_xen_frame(self, domain: _Domain, /) -> int: ...
    def domain_claim(self, domain: _Domain, pages: int, /) -> int: ...
    def domain_free(self, domain: _Domain, /) -> None: ...
    def domain_limits(self, domain: _Domain, max_pages: int, max_grant_frames: int, /) -> int: ...
    def domain_max_gpfn(self, domain: _Domain, /) -> int: ...
    def domain_max_pages(self, domain: _Domain, /) -> int: ...
    def domain_new(self, machine: _Machine, domid: int, is_32bit: int, /) -> _Domain: ...
    def domain_outstanding_pages(self, domain: _Domain, /) -> int: ...
    def domain_populate(self, domain: _Domain, pfn: int, count: int, /) -> int: ...
    def domain_release(self, domain: _Domain, /) -> None: ...
    def domain_relinquish(self, domain: _Domain, /) -> None: ...
    def domain_set_max_pages(self, domain: _Domain, max_pages: int, /) -> int: ...
    def domain_shared_frames(self, domain: _Domain, /) -> int: ...
    def domain_shared_info_frame(self, domain: _Domain, /) -> int: ...
    def domain_tot_pages(self, domain: _Domain, /) -> int: ...
    def domain_unmap(self, domain: _Domain, pfn: int, /) -> int: ...
    def evtchn_attach(self, domain: _Domain, shared_info_frame: int, nr_vcpus: int, /) -> int: ...
    def evtchn_clear(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_clear_pending(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_deliverable(self, domain: _Domain, vcpu: int, /) -> int: ...
    def evtchn_get_priority(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_grow(self, domain: _Domain, /) -> int: ...
    def evtchn_guest_unmask(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_init(self, evtchn: _Evtchn, vcpu: int, /) -> int: ...
    def evtchn_is_busy(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_is_fifo(self, domain: _Domain, /) -> int: ...
    def evtchn_is_masked(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_is_pending(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_is_saved(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_mask(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_next_saved(self, domain: _Domain, from_: int, to: int, /) -> int: ...
    def evtchn_polls_pending(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_port(self, domain: _Domain, port: int, /) -> _Evtchn: ...
    def evtchn_raise(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_save_pending(self, domain: _Domain, /) -> int: ...
    def evtchn_scan(self, domain: _Domain, vcpu: int, ports: Any, max: int, ack: int, /) -> int: ...
    def evtchn_set_pending(self, domain: _Domain, port: int, vcpu: int, /) -> int: ...
    def evtchn_set_polling(self, domain: _Domain, polling: int, /) -> None: ...
    def evtchn_set_priority(self, evtchn: _Evtchn, priority: int, /) -> int: ...
    def evtchn_set_vcpu(self, evtchn: _Evtchn, vcpu: int, /) -> int: ...
    def evtchn_take_pending(self, domain: _Domain, port: int, /) -> int: ...
    def evtchn_take_upcall(self, domain: _Domain, vcpu: int, /) -> int: ...
    def evtchn_unmask(self, evtchn: _Evtchn, /) -> int: ...
    def evtchn_upcall_pending(self, domain: _Domain, vcpu: int, /) -> int: ...
    def fifo_destroy(self, domain: _Domain, /) -> int: ...
    def fifo_expand_array(self, domain: _Domain, pfn: int, /) -> int: ...
    def fifo_has_frame(self, domain: _Domain, frame: int, /) -> int: ...
    def fifo_head(self, domain: _Domain, vcpu: int, priority: int, /) -> int: ...
    def fifo_init_control(self, domain: _Domain, pfn: int, offset: int, vcpu: int, /) -> int: ...
    def fifo_read_word(self, domain: _Domain, port: int, /) -> int: ...
    def fifo_take_ready(self, domain: _Domain, vcpu: int, /) -> int: ...
    def fifo_unlink(self, domain: _Domain, port: int, /) -> int: ...
    def frame_owner(self, machine: _Machine, frame: int, /) -> int: ...
    def frame_refs(self, machine: _Machine, frame: int, /) -> int: ...
    def front_final_check(self, ring: _Ring, /) -> int: ...
    def front_free(self, ring: _Ring, /) -> int: ...
    def front_inflight(self, ring: _Ring, /) -> int: ...
    def front_push(self, ring: _Ring, requests: Any, n: int, req_size: int, /) -> int: ...
    def front_reap(self, ring: _Ring, responses: Any, max: int, /) -> int: ...
    def front_take(self, ring: _Ring, responses: Any, max: int, /) -> int: ...
    def gil_held(self, /) -> int: ...
    def grant_copy(self, self0: _Domain, ops: Any, n: int, allow_transitive: int, /) -> int: ...
    def grant_copy_local(
        self,
        self0: _Domain,
        granter: _Domain,
        to_guest: int,
        ops: Any,
        n: int,
        local: Any,
        local_size: int,
        status: Any,
        /,
    ) -> int: ...
    def grant_entries_revoke(self, domain: _Domain, refs: Any, count: int, /) -> int: ...
    def grant_entries_set(
        self, domain: _Domain, refs: Any, frames: Any, count: int, domid: int, flags: int, /
    ) -> int: ...
    def grant_entries_set_run(
        self, domain: _Domain, refs: Any, count: int, domid: int, frame: int, flags: int, /
    ) -> int: ...
    def grant_entry_flags(self, domain: _Domain, ref: int, /) -> int: ...
    def grant_entry_readonly(self, domain: _Domain, ref: int, readonly: int, /) -> int: ...
    def grant_entry_revoke(self, domain: _Domain, ref: int, /) -> int: ...
    def grant_entry_set(
        self, domain: _Domain, ref: int, domid: int, frame: int, flags: int, /
    ) -> int: ...
    def grant_entry_set_sub_page(
        self,
        domain: _Domain,
        ref: int,
        domid: int,
        frame: int,
        page_off: int,
        length: int,
        flags: int,
        /,
    ) -> int: ...
    def grant_entry_set_transitive(
        self, domain: _Domain, ref: int, domid: int, trans_domid: int, trans_ref: int, flags: int, /
    ) -> int: ...
    def grant_entry_status(self, domain: _Domain, ref: int, /) -> int: ...
    def grant_frame_gfn(self, domain: _Domain, frame: int, /) -> int: ...
    def grant_map(self, mapper: _Domain, granter: _Domain, map_grant_ref: Any, /) -> int: ...
    def grant_pinned_frame(self, domain: _Domain, ref: int, /) -> int: ...
    def grant_pinned_refs(self, domain: _Domain, /) -> int: ...
    def grant_pins(self, domain: _Domain, ref: int, /) -> int: ...
    def grant_swap(self, domain: _Domain, ref_a: int, ref_b: int, /) -> int: ...
    def grant_table_dying(self, domain: _Domain, /) -> int: ...
    def grant_table_entries(self, domain: _Domain, /) -> int: ...
    def grant_table_frame(self, domain: _Domain, index: int, /) -> int: ...
    def grant_table_frames(self, domain: _Domain, /) -> int: ...
    def grant_table_grow(self, domain: _Domain, nr_frames: int, /) -> int: ...
    def grant_table_pv(self, domain: _Domain, is_pv: int, /) -> int: ...
    def grant_table_set_version(self, domain: _Domain, version: int, /) -> int: ...
    def grant_table_status_frame(self, domain: _Domain, index: int, /) -> int: ...
    def grant_table_status_frames(self, domain: _Domain, /) -> int: ...
    def grant_table_version(self, domain: _Domain, /) -> int: ...
    def grant_transfer(self, from_: _Domain, transfer: Any, /) -> int: ...
    def grant_unmap(
        self,
        mapper: _Domain,
        granter: _Domain,
        ref: int,
        flags: int,
        host_addr: int,
        dev_bus_addr: int,
        new_addr: int,
        done: Any,
        /,
    ) -> int: ...
    def grant_unpin(self, mapper: _Domain, granter: _Domain, ref: int, done: int, /) -> int: ...
    kernel_hook: Any
    def log_delivery(self, machine: _Machine, actor: int, /) -> int: ...
    def log_double_fetches(self, machine: _Machine, out: Any, max: int, /) -> int: ...
    def log_entries(self, machine: _Machine, out: Any, max: int, /) -> int: ...
    def log_total(self, machine: _Machine, /) -> int: ...
    def machine_access(
        self, machine: _Machine, actor: int, kind: int, frame: int, offset: int, size: int, /
    ) -> int: ...
    def machine_delete(self, machine: _Machine, /) -> None: ...
    def machine_forked(self, machine: _Machine, /) -> None: ...
    def machine_free_pages(self, machine: _Machine, /) -> int: ...
    def machine_high_water(self, machine: _Machine, /) -> int: ...
    def machine_hook(self, machine: _Machine, arg1: Any, context: Any, /) -> int: ...
    def machine_hooked(self, machine: _Machine, /) -> int: ...
    def machine_log(self, machine: _Machine, capacity: int, /) -> int: ...
    def machine_new(self, base: Any, nr_frames: int, /) -> _Machine: ...
    def machine_reset(self, machine: _Machine, /) -> int: ...
    def machine_take_drained(self, machine: _Machine, /) -> int: ...
    def machine_unlog(self, machine: _Machine, /) -> int: ...
    def machine_used_frames(self, machine: _Machine, /) -> int: ...
    def memory_decrease(self, domain: _Domain, gpfns: Any, n: int, order: int, /) -> int: ...
    def memory_increase(self, domain: _Domain, n: int, order: int, mfns: Any, /) -> int: ...
    def memory_populate(
        self, domain: _Domain, gpfns: Any, n: int, order: int, why: Any, /
    ) -> int: ...
    def net_answer(self, net_pass: Any, first: int, n: int, /) -> int: ...
    def net_copy(
        self,
        net_pass: Any,
        granter: _Domain,
        first: int,
        n: int,
        ends: Any,
        local: Any,
        local_size: int,
        /,
    ) -> int: ...
    def net_front_abort(self, net_front: Any, status: int, completions: Any, /) -> int: ...
    def net_front_answer(
        self, net_front: Any, responses: Any, n: int, completions: Any, /
    ) -> int: ...
    def net_front_chain(
        self,
        net_front: Any,
        data: Any,
        size: int,
        pieces: Any,
        n: int,
        flags: int,
        extras: Any,
        nr_extras: int,
        packet: Any,
        /,
    ) -> int: ...
    def net_front_own(self, net_front: Any, id: int, extra: Any, /) -> int: ...
    def net_front_publish(self, net_front: Any, /) -> int: ...
    def net_front_send(
        self, net_front: Any, data: Any, size: int, lengths: Any, cookies: Any, n: int, most: int, /
    ) -> int: ...
    def net_parse(self, frame: Any, size: int, net_headers: Any, /) -> int: ...
    def net_receive(
        self,
        offload: int,
        calculate: int,
        address: Any,
        data: Any,
        size: int,
        ends: Any,
        flags: Any,
        n: int,
        facts: Any,
        /,
    ) -> int: ...
    def net_single(
        self,
        responses: Any,
        n: int,
        first: int,
        pfns: Any,
        size: int,
        pieces: Any,
        ends: Any,
        flags: Any,
        /,
    ) -> int: ...
    def net_take(self, net_pass: Any, /) -> int: ...
    def p2m_lookup(self, domain: _Domain, pfn: int, populate: int, /) -> int: ...
    def p2m_next_touched(self, domain: _Domain, pfns: Any, from_: int, count: int, /) -> int: ...
    def p2m_run(self, domain: _Domain, pfn: int, count: int, /) -> int: ...
    def p2m_tables(self, domain: _Domain, /) -> int: ...
    def p2m_touched(self, domain: _Domain, from_: int, pfns: Any, max: int, /) -> int: ...
    def p2m_type(self, domain: _Domain, pfn: int, /) -> int: ...
    def page_drop(self, domain: _Domain, page: Any, /) -> None: ...
    def page_gather(
        self, domain: _Domain, pfn_offset_size: Any, n: int, out: Any, size: int, /
    ) -> int: ...
    def page_hold(self, domain: _Domain, pfn: int, /) -> Any: ...
    def page_load32(self, domain: _Domain, pfn: int, offset: int, /) -> int: ...
    def page_read(self, domain: _Domain, pfn: int, offset: int, out: Any, size: int, /) -> int: ...
    def page_scatter(
        self, domain: _Domain, pfn_offset_size: Any, n: int, data: Any, size: int, /
    ) -> int: ...
    def page_store32(self, domain: _Domain, pfn: int, offset: int, value: int, /) -> int: ...
    def page_update32(
        self, domain: _Domain, pfn: int, offset: int, how: int, value: int, /
    ) -> int: ...
    def page_write(
        self, domain: _Domain, pfn: int, offset: int, data: Any, size: int, /
    ) -> int: ...
    def physmap_acquire(self, domain: _Domain, gpfn: int, frame: int, /) -> int: ...
    def physmap_add_foreign(
        self, domain: _Domain, gpfn: int, owner: _Domain, gfn: int, /
    ) -> int: ...
    def physmap_move(self, domain: _Domain, from_: int, to: int, /) -> int: ...
    def physmap_remove(self, domain: _Domain, gpfn: int, /) -> int: ...
    def ring_attach(
        self, domain: _Domain, pfns: Any, nr_pages: int, entry_size: int, rsp_size: int, /
    ) -> _Ring: ...
    def ring_cons(self, ring: _Ring, /) -> int: ...
    def ring_detach(self, ring: _Ring, /) -> None: ...
    def ring_init(self, ring: _Ring, /) -> int: ...
    def ring_prod_pvt(self, ring: _Ring, /) -> int: ...
    def ring_resume(self, ring: _Ring, /) -> int: ...
    def ring_seek(self, ring: _Ring, prod_pvt: int, cons: int, /) -> None: ...
    def ring_size(self, ring: _Ring, /) -> int: ...
    def stream_get(
        self,
        domain: _Domain,
        pfn: int,
        base: int,
        size: int,
        cons_offset: int,
        prod_offset: int,
        out: Any,
        max: int,
        /,
    ) -> int: ...
    def stream_put(
        self,
        domain: _Domain,
        pfn: int,
        base: int,
        size: int,
        cons_offset: int,
        prod_offset: int,
        data: Any,
        n: int,
        /,
    ) -> int: ...
    def toeplitz(self, key: Any, key_size: int, input: Any, size: int, /) -> int: ...
    def upcall_free(self, upcall: _Upcall, /) -> None: ...
    def upcall_new(self, domain: _Domain, vcpu: int, ack: int, /) -> _Upcall: ...
    def upcall_port(self, upcall: _Upcall, port: int, mine: int, automask: int, /) -> None: ...
    def upcall_ports(self, upcall: _Upcall, /) -> Any: ...
    def upcall_take(self, upcall: _Upcall, /) -> int: ...
    def vcpu_area_register(
        self, domain: _Domain, vcpu: int, is_time: int, address: int, /
    ) -> int: ...
    def vcpu_attach(self, domain: _Domain, nr_vcpus: int, /) -> int: ...
    def vcpu_guest_area(self, domain: _Domain, vcpu: int, is_time: int, address: int, /) -> int: ...
    def vcpu_info_register(self, domain: _Domain, vcpu: int, pfn: int, offset: int, /) -> int: ...
    def vcpu_runstate_update(
        self, domain: _Domain, vcpu: int, state: int, entry_time: int, times: Any, flag: int, /
    ) -> int: ...
    def vcpu_time_populate(
        self,
        domain: _Domain,
        vcpu: int,
        tsc: int,
        system_time: int,
        mul: int,
        shift: int,
        flags: int,
        /,
    ) -> int: ...
    def vcpu_time_update(
        self,
        domain: _Domain,
        vcpu: int,
        tsc: int,
        system_time: int,
        mul: int,
        shift: int,
        flags: int,
        force: int,
        /,
    ) -> int: ...
    def vcpu_unmask_upcall(self, domain: _Domain, vcpu: int, /) -> int: ...
    def vcpu_unregister_all(self, domain: _Domain, /) -> None: ...
    def wallclock_update(self, domain: _Domain, sec: int, nsec: int, /) -> int: ...

ffi: _FFI
lib: _Lib
