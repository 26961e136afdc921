/*
 * The layouts that differ for an i386 guest: there u64 is aligned to 4, and
 * `unsigned long` and guest handles have 4 bytes. What is not here is the same.
 *
 * ARM aligns u64 to 8: its 32-bit guests use the blkif layouts of blkif.h.
 */
#pragma pack(push, 4)
typedef uint32_t xen_pfn_x86_32_t;
typedef uint32_t xen_ulong_x86_32_t;
typedef uint32_t guest_handle_x86_32_t;

struct mmuext_op_x86_32 {
    uint32_t cmd;
    union {
        xen_pfn_x86_32_t mfn;
        uint32_t linear_addr;
    } arg1;
    union {
        uint32_t nr_ents;
        guest_handle_x86_32_t vcpumask;
        xen_pfn_x86_32_t src_mfn;
    } arg2;
};

struct multicall_entry_x86_32 {
    xen_ulong_x86_32_t op;
    xen_ulong_x86_32_t result;
    xen_ulong_x86_32_t args[6];
};

struct arch_vcpu_info_x86_32 {
    uint32_t cr2;
    uint32_t pad[5];
};

struct vcpu_info_x86_32 {
    uint8_t evtchn_upcall_pending;
    uint8_t evtchn_upcall_mask;
    xen_ulong_x86_32_t evtchn_pending_sel;
    struct arch_vcpu_info_x86_32 arch;
    struct vcpu_time_info time;
};

struct arch_shared_info_x86_32 {
    uint32_t max_pfn;
    xen_pfn_x86_32_t pfn_to_mfn_frame_list_list;
    uint32_t nmi_reason;
    uint32_t p2m_cr3;
    uint32_t p2m_vaddr;
    uint32_t p2m_generation;
    uint32_t wc_sec_hi;
};

struct shared_info_x86_32 {
    struct vcpu_info_x86_32 vcpu_info[32];
    xen_ulong_x86_32_t evtchn_pending[32];
    xen_ulong_x86_32_t evtchn_mask[32];
    uint32_t wc_version;
    uint32_t wc_sec;
    uint32_t wc_nsec;
    struct arch_shared_info_x86_32 arch;
};

struct start_info_x86_32 {
    char magic[32];
    uint32_t nr_pages;
    uint32_t shared_info;
    uint32_t flags;
    xen_pfn_x86_32_t store_mfn;
    uint32_t store_evtchn;
    union {
        struct {
            xen_pfn_x86_32_t mfn;
            uint32_t evtchn;
        } domU;
        struct {
            uint32_t info_off;
            uint32_t info_size;
        } dom0;
    } console;
    uint32_t pt_base;
    uint32_t nr_pt_frames;
    uint32_t mfn_list;
    uint32_t mod_start;
    uint32_t mod_len;
    int8_t cmd_line[1024];
    uint32_t first_p2m_pfn;
    uint32_t nr_p2m_frames;
};

struct trap_info_x86_32 {
    uint8_t vector;
    uint8_t flags;
    uint16_t cs;
    uint32_t address;
};

struct gnttab_setup_table_x86_32 {
    domid_t dom;
    uint32_t nr_frames;
    int16_t status;
    guest_handle_x86_32_t frame_list;
};

struct gnttab_transfer_x86_32 {
    xen_pfn_x86_32_t mfn;
    domid_t domid;
    grant_ref_t ref;
    int16_t status;
};

struct gnttab_copy_ptr_x86_32 {
    union {
        grant_ref_t ref;
        xen_pfn_x86_32_t gmfn;
    } u;
    domid_t domid;
    uint16_t offset;
};

struct gnttab_copy_x86_32 {
    struct gnttab_copy_ptr_x86_32 source;
    struct gnttab_copy_ptr_x86_32 dest;
    uint16_t len;
    uint16_t flags;
    int16_t status;
};

struct gnttab_get_status_frames_x86_32 {
    uint32_t nr_frames;
    domid_t dom;
    int16_t status;
    guest_handle_x86_32_t frame_list;
};

struct blkif_request_x86_32 {
    uint8_t operation;
    uint8_t nr_segments;
    uint16_t handle;
    uint64_t id;
    uint64_t sector_number;
    struct blkif_request_segment seg[11];
};

struct blkif_request_discard_x86_32 {
    uint8_t operation;
    uint8_t flag;
    uint16_t handle;
    uint64_t id;
    uint64_t sector_number;
    uint64_t nr_sectors;
};

struct blkif_request_indirect_x86_32 {
    uint8_t operation;
    uint8_t indirect_op;
    uint16_t nr_segments;
    uint64_t id;
    uint64_t sector_number;
    uint16_t handle;
    grant_ref_t indirect_grefs[8];
    uint64_t pad; /* brings it to the 64 bytes of the other ABI */
};

struct blkif_response_x86_32 {
    uint64_t id;
    uint8_t operation;
    int16_t status;
};

union blkif_sring_entry_x86_32 {
    struct blkif_request_x86_32 req;
    struct blkif_response_x86_32 rsp;
};

struct blkif_sring_x86_32 {
    RING_IDX req_prod;
    RING_IDX req_event;
    RING_IDX rsp_prod;
    RING_IDX rsp_event;
    union {
        struct {
            uint8_t smartpoll_active;
        } netif;
        struct {
            uint8_t msg;
        } tapif_user;
        uint8_t pvt_pad[4];
    } pvt;
    uint8_t __pad[44];
    union blkif_sring_entry_x86_32 ring[32];
};

struct vcpu_runstate_info_x86_32 {
    int32_t state;
    uint64_t state_entry_time;
    uint64_t time[4];
};

struct vcpu_register_runstate_memory_area_x86_32 {
    union {
        guest_handle_x86_32_t h;
        uint64_t p;
    } addr;
};

struct vcpu_register_time_memory_area_x86_32 {
    union {
        guest_handle_x86_32_t h;
        uint64_t p;
    } addr;
};

struct vcpu_set_singleshot_timer_x86_32 {
    uint64_t timeout_abs_ns;
    uint32_t flags;
};

struct sched_poll_x86_32 {
    guest_handle_x86_32_t ports;
    uint32_t nr_ports;
    uint64_t timeout;
};

struct xen_memory_reservation_x86_32 {
    guest_handle_x86_32_t extent_start;
    xen_ulong_x86_32_t nr_extents;
    uint32_t extent_order;
    uint32_t mem_flags;
    domid_t domid;
};

struct xen_memory_exchange_x86_32 {
    struct xen_memory_reservation_x86_32 in;
    struct xen_memory_reservation_x86_32 out;
    xen_ulong_x86_32_t nr_exchanged;
};

struct xen_machphys_mfn_list_x86_32 {
    uint32_t max_extents;
    guest_handle_x86_32_t extent_start;
    uint32_t nr_extents;
};

struct xen_machphys_mapping_x86_32 {
    xen_ulong_x86_32_t v_start;
    xen_ulong_x86_32_t v_end;
    xen_ulong_x86_32_t max_mfn;
};

struct xen_add_to_physmap_x86_32 {
    domid_t domid;
    uint16_t size;
    uint32_t space;
    xen_ulong_x86_32_t idx;
    xen_pfn_x86_32_t gpfn;
};

struct xen_add_to_physmap_batch_x86_32 {
    domid_t domid;
    uint16_t space;
    uint16_t size;
    union xen_add_to_physmap_batch_extra u;
    guest_handle_x86_32_t idxs;
    guest_handle_x86_32_t gpfns;
    guest_handle_x86_32_t errs;
};

struct xen_remove_from_physmap_x86_32 {
    domid_t domid;
    xen_pfn_x86_32_t gpfn;
};

struct xen_memory_map_x86_32 {
    uint32_t nr_entries;
    guest_handle_x86_32_t buffer;
};

struct xen_foreign_memory_map_x86_32 {
    domid_t domid;
    struct xen_memory_map_x86_32 map;
};

struct xen_pod_target_x86_32 {
    uint64_t target_pages;
    uint64_t tot_pages;
    uint64_t pod_cache_pages;
    uint64_t pod_entries;
    domid_t domid;
};

struct xen_mem_acquire_resource_x86_32 {
    domid_t domid;
    uint16_t type;
    uint32_t id;
    uint32_t nr_frames;
    uint32_t pad;
    uint64_t frame;
    guest_handle_x86_32_t frame_list;
};

struct xen_reserved_device_memory_x86_32 {
    xen_pfn_x86_32_t start_pfn;
    xen_ulong_x86_32_t nr_pages;
};

struct xen_vnuma_topology_info_x86_32 {
    domid_t domid;
    uint16_t pad;
    uint32_t nr_vnodes;
    uint32_t nr_vcpus;
    uint32_t nr_vmemranges;
    union {
        guest_handle_x86_32_t h;
        uint64_t pad;
    } vdistance;
    union {
        guest_handle_x86_32_t h;
        uint64_t pad;
    } vcpu_to_vnode;
    union {
        guest_handle_x86_32_t h;
        uint64_t pad;
    } vmemrange;
};

struct xen_platform_parameters_x86_32 {
    xen_ulong_x86_32_t virt_start;
};

struct callback_register_x86_32 {
    uint16_t type;
    uint16_t flags;
    struct {
        uint32_t cs;
        uint32_t eip;
    } address;
};

struct xennmi_callback_x86_32 {
    uint32_t handler_address;
    uint32_t pad;
};
#pragma pack(pop)
