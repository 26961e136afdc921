/*
 * Prototypes of the kernel, in the C that cffi's cdef reads.
 *
 * Results: >= 0 is a value, negative is -errno, or one of KERNEL_E_*.
 * A frame (mfn) is an index into the arena; a pfn is an index into one domain's p2m.
 */

#define KERNEL_E_FORKED ...       /* a child process inherited the arena */
#define KERNEL_E_ABORTED ...      /* the hook raised; its exception is kept by the Python side */
#define KERNEL_E_OVERFLOW ...     /* the peer's producer index runs past the ring */

#define ACCESS_READ ...
#define ACCESS_WRITE ...
#define ACCESS_ATOMIC ...
#define ACCESS_HYPERVISOR ...     /* flag: under a hypervisor lock, only memory may change */

#define FRAME_NONE ...
#define P2M_NONE ...
#define P2M_RAM ...
#define P2M_HOLE ...
#define P2M_GRANT_RW ...
#define P2M_GRANT_RO ...
#define P2M_FOREIGN ...
#define P2M_XEN ...

typedef int (*access_hook)(void *context, uint32_t actor, uint32_t kind,
                           uint32_t frame, uint32_t offset, uint32_t size);
extern "Python" int kernel_hook(void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);

typedef struct machine machine;
typedef struct domain domain;
typedef struct ring ring;

/* memory.c */
machine *machine_new(void *base, uint32_t nr_frames);
void machine_delete(machine *);
void machine_forked(machine *);
uint32_t machine_reset(machine *);
int machine_hook(machine *, access_hook, void *context);
uint32_t machine_free_pages(machine *);
uint32_t machine_used_frames(machine *);
uint32_t machine_high_water(machine *);
uint32_t frame_refs(machine *, uint32_t frame);
int frame_owner(machine *, uint32_t frame);

domain *domain_new(machine *, uint32_t domid, int is_32bit);
void domain_relinquish(domain *);
uint32_t domain_shared_frames(domain *);
void domain_release(domain *);
void domain_free(domain *);
int domain_limits(domain *, uint32_t max_pages, uint32_t max_grant_frames);
uint32_t domain_tot_pages(domain *);
int64_t domain_populate(domain *, uint32_t pfn, uint32_t count);
int64_t domain_depopulate(domain *, uint32_t pfn, uint32_t count);
int64_t domain_add_xen_frame(domain *, uint32_t pfn, uint32_t frame);
int64_t domain_alloc_xen_frame(domain *);
int domain_unmap(domain *, uint32_t pfn);
int64_t p2m_lookup(domain *, uint32_t pfn, int populate);
int p2m_type(domain *, uint32_t pfn);
uint8_t *page_hold(domain *, uint32_t pfn);
void page_drop(domain *, uint8_t *page);

int64_t page_read(domain *, uint32_t pfn, uint32_t offset, void *out, uint32_t size);
int64_t page_write(domain *, uint32_t pfn, uint32_t offset, const void *data, uint32_t size);
int64_t page_load32(domain *, uint32_t pfn, uint32_t offset);
int page_store32(domain *, uint32_t pfn, uint32_t offset, uint32_t value);
int64_t page_gather(domain *, const uint32_t *pfn_offset_size, uint32_t n, void *out, uint32_t size);
int64_t page_scatter(domain *, const uint32_t *pfn_offset_size, uint32_t n, const void *data, uint32_t size);

/* ring.c */
ring *ring_attach(domain *, const uint32_t *pfns, uint32_t nr_pages,
                  uint32_t entry_size, uint32_t rsp_size);
void ring_detach(ring *);
uint32_t ring_size(ring *);
int ring_init(ring *);
int ring_resume(ring *);
int64_t front_push(ring *, const void *requests, uint32_t n, uint32_t req_size);
int64_t front_take(ring *, void *responses, uint32_t max);
int64_t front_final_check(ring *);
int64_t front_reap(ring *, void *responses, uint32_t max);
uint32_t front_free(ring *);
uint32_t front_inflight(ring *);
int64_t back_take(ring *, void *requests, uint32_t max, uint32_t req_size);
int64_t back_push(ring *, const void *responses, uint32_t n);
int64_t back_final_check(ring *);
uint32_t back_inflight(ring *);
uint32_t ring_prod_pvt(ring *);
uint32_t ring_cons(ring *);
void ring_seek(ring *, uint32_t prod_pvt, uint32_t cons);

int64_t stream_put(domain *, uint32_t pfn, uint32_t base, uint32_t size,
                   uint32_t cons_offset, uint32_t prod_offset, const void *data, uint32_t n);
int64_t stream_get(domain *, uint32_t pfn, uint32_t base, uint32_t size,
                   uint32_t cons_offset, uint32_t prod_offset, void *out, uint32_t max);

/* grant.c */
int grant_table_grow(domain *, uint32_t nr_frames);
uint32_t grant_table_frames(domain *);
int64_t grant_table_frame(domain *, uint32_t index);
int grant_entry_set(domain *, uint32_t ref, uint32_t domid, uint32_t frame, uint32_t flags);
int64_t grant_entry_flags(domain *, uint32_t ref);
int grant_entry_revoke(domain *, uint32_t ref);
int64_t grant_acquire(domain *granter, uint32_t mapper_domid, uint32_t ref, int readonly);
int grant_release(domain *granter, uint32_t ref, int readonly);
int64_t grant_map(domain *mapper, domain *granter, uint32_t ref, int readonly, uint32_t pfn);
int grant_unmap(domain *mapper, domain *granter, uint32_t ref, int readonly, uint32_t pfn);
uint32_t grant_pins(domain *, uint32_t ref);
uint32_t grant_pinned_refs(domain *);
int64_t grant_copy(domain *self, domain *source, domain *dest, void *ops, uint32_t n);
int64_t grant_copy_local(domain *self, domain *granter, int to_guest, const uint32_t *ops,
                         uint32_t n, void *local, uint64_t local_size, int8_t *status);

/* blk.c */
struct blk_run {
    uint32_t first, end;
    uint32_t operation;
    uint32_t least;
    uint32_t units;
    uint32_t pad;
    uint64_t top;
};
struct blk_pass {
    ring *ring;
    domain *granter;
    void *requests;
    int8_t *verdicts;
    uint32_t *sectors;
    uint64_t *offsets;
    struct blk_run *runs;
    uint32_t is_x86_32;
};
int64_t blk_take(struct blk_pass *);
int64_t blk_copy(struct blk_pass *, uint32_t first, uint32_t end, const uint64_t *places,
                 void *local, uint64_t local_size);
int64_t blk_answer(struct blk_pass *, uint32_t n);

/* net.c */
struct net_group {
    uint32_t flags;
    uint32_t smallest;
    uint32_t furthest;
    uint32_t bytes;
};
struct net_pass {
    ring *ring;
    void *requests;
    int8_t *verdicts;
    struct net_group *groups;
    uint32_t group;
};
int64_t net_take(struct net_pass *);
int64_t net_copy(struct net_pass *, domain *granter, uint32_t first, uint32_t n, uint32_t *ends,
                 void *local, uint32_t local_size);
int64_t net_answer(struct net_pass *, uint32_t first, uint32_t n);

/* evtchn.c */
int evtchn_attach(domain *, uint32_t shared_info_frame, uint32_t nr_vcpus);
int64_t evtchn_set_pending(domain *, uint32_t port, uint32_t vcpu);
int64_t evtchn_is_pending(domain *, uint32_t port);
int64_t evtchn_is_masked(domain *, uint32_t port);
int evtchn_clear_pending(domain *, uint32_t port);
int evtchn_take_pending(domain *, uint32_t port);
int evtchn_mask(domain *, uint32_t port);
int64_t evtchn_unmask(domain *, uint32_t port, uint32_t vcpu);
int64_t evtchn_guest_unmask(domain *, uint32_t port);
int64_t evtchn_scan(domain *, uint32_t vcpu, uint32_t *ports, uint32_t max, int ack);
int64_t evtchn_upcall_pending(domain *, uint32_t vcpu);

/* checksum.c */
uint32_t checksum_internet(const void *data, uint32_t size, uint32_t initial);
uint32_t toeplitz(const void *key, uint32_t key_size, const void *input, uint32_t size);
int gil_held(void);
