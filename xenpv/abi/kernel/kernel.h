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
#define ACCESS_COPY ...           /* flag: the bytes of a grant copy, by Xen for its caller */

#define FRAME_NONE ...
#define P2M_NONE ...
#define P2M_RAM ...
#define P2M_GRANT_RW ...
#define P2M_GRANT_RO ...
#define P2M_FOREIGN ...
#define P2M_XEN ...

typedef int (*access_hook)(void *context, uint32_t actor, uint32_t kind,
                           uint32_t frame, uint32_t offset, uint32_t size);
extern "Python" int kernel_hook(void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);

typedef struct machine machine;
typedef struct domain domain;
typedef struct dirty_log dirty_log;
typedef struct ring ring;
typedef struct evtchn evtchn;
typedef struct upcall upcall;

#define RAISED_NEW ...            /* evtchn_raise: was not pending */
#define RAISED_KICK ...           /* upcall_pending rose */
#define RAISED_POLL ...           /* and somebody waits in SCHEDOP_poll */
#define UPDATE_OR ...             /* page_update32 */
#define UPDATE_AND ...
#define UPDATE_EXCHANGE ...
#define UPCALL_PORTS ...

/* machine.c */
machine *machine_new(void *base, uint32_t nr_frames);
void machine_delete(machine *);
void machine_forked(machine *);
uint32_t machine_reset(machine *);
int machine_hook(machine *, access_hook, void *context);
int machine_access(machine *, uint32_t actor, uint32_t kind, uint32_t frame, uint32_t offset,
                   uint32_t size);
int machine_hooked(machine *);
uint32_t machine_free_pages(machine *);
uint32_t machine_used_frames(machine *);
uint32_t machine_high_water(machine *);
uint32_t machine_take_drained(machine *);
uint32_t frame_refs(machine *, uint32_t frame);
int frame_owner(machine *, uint32_t frame);

/* memory.c */
domain *domain_new(machine *, uint32_t domid, int is_32bit);
void domain_relinquish(domain *);
uint32_t domain_shared_frames(domain *);
void domain_release(domain *);
void domain_free(domain *);
int domain_limits(domain *, uint32_t max_pages, uint32_t max_grant_frames);
int domain_set_max_pages(domain *, uint32_t max_pages);
int domain_claim(domain *, uint64_t pages);
uint32_t domain_tot_pages(domain *);
uint32_t domain_max_pages(domain *);
uint32_t domain_max_gpfn(domain *);
uint32_t domain_outstanding_pages(domain *);
int64_t memory_populate(domain *, const uint64_t *gpfns, uint32_t n, uint32_t order, int *why);
int64_t memory_increase(domain *, uint32_t n, uint32_t order, uint64_t *mfns);
int64_t memory_decrease(domain *, const uint64_t *gpfns, uint32_t n, uint32_t order);
int64_t domain_populate(domain *, uint32_t pfn, uint32_t count);
int64_t domain_alloc_xen_frame(domain *);
int64_t domain_add_xen_frame(domain *, uint64_t gpfn, uint32_t frame);
int64_t domain_shared_info_frame(domain *);
int domain_unmap(domain *, uint32_t pfn);
int physmap_move(domain *, uint64_t from, uint64_t to);
int physmap_add_foreign(domain *, uint64_t gpfn, domain *owner, uint64_t gfn);
int physmap_acquire(domain *, uint64_t gpfn, uint32_t frame);
int physmap_remove(domain *, uint64_t gpfn);

/* p2m.c */
int64_t p2m_lookup(domain *, uint32_t pfn, int populate);
int64_t p2m_next_touched(domain *, const uint32_t *pfns, uint32_t from, uint32_t count);
int p2m_type(domain *, uint32_t pfn);
uint32_t p2m_run(domain *, uint32_t pfn, uint32_t count);
uint32_t p2m_touched(domain *, uint32_t from, uint32_t *pfns, uint32_t max);
uint32_t p2m_tables(domain *);

/* page.c */
uint8_t *page_hold(domain *, uint32_t pfn);
void page_drop(domain *, uint8_t *page);
int64_t page_read(domain *, uint32_t pfn, uint32_t offset, void *out, uint32_t size);
int64_t page_write(domain *, uint32_t pfn, uint32_t offset, const void *data, uint32_t size);
int64_t page_load32(domain *, uint32_t pfn, uint32_t offset);
int page_store32(domain *, uint32_t pfn, uint32_t offset, uint32_t value);
int64_t page_update32(domain *, uint32_t pfn, uint32_t offset, int how, uint32_t value);
int64_t page_gather(domain *, const uint32_t *pfn_offset_size, uint32_t n, void *out, uint32_t size);
int64_t page_scatter(domain *, const uint32_t *pfn_offset_size, uint32_t n, const void *data, uint32_t size);

/* dirty.c */
dirty_log *dirty_log_new(domain *);
void dirty_log_free(dirty_log *);
int64_t dirty_log_sent(dirty_log *, const uint32_t *pfns, uint32_t count);
int64_t dirty_log_read(dirty_log *, uint32_t from, uint32_t *pfns, uint32_t max);

/* log.c */
struct access_entry {
    uint32_t delivery;
    uint32_t frame;
    uint16_t offset, size;
    uint16_t actor, kind;
};
struct double_fetch {
    uint64_t delivery;
    uint32_t frame;
    uint32_t offset, size;   /* the bytes read before in this delivery */
    uint16_t actor;
    uint16_t kind;
    uint64_t count;          /* times it happened */
};
int machine_log(machine *, uint32_t capacity);
int machine_unlog(machine *);
int log_delivery(machine *, uint32_t actor);
uint64_t log_total(machine *);
uint32_t log_entries(machine *, struct access_entry *out, uint32_t max);
uint32_t log_double_fetches(machine *, struct double_fetch *out, uint32_t max);

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

/* grant_table.c */
int grant_table_grow(domain *, uint32_t nr_frames);
int grant_table_dying(domain *);
int grant_table_pv(domain *, int is_pv);
uint32_t grant_table_frames(domain *);
uint32_t grant_table_status_frames(domain *);
uint32_t grant_table_entries(domain *);
int64_t grant_table_frame(domain *, uint32_t index);
int64_t grant_table_status_frame(domain *, uint32_t index);
int64_t grant_frame_gfn(domain *, uint32_t frame);
uint32_t grant_table_version(domain *);
int grant_table_set_version(domain *, uint32_t version);
int grant_swap(domain *, uint32_t ref_a, uint32_t ref_b);
int grant_entry_set(domain *, uint32_t ref, uint32_t domid, uint64_t frame, uint32_t flags);
int grant_entries_set(domain *, const uint32_t *refs, const uint64_t *frames, uint32_t count,
                      uint32_t domid, uint32_t flags);
int grant_entries_set_run(domain *, const uint32_t *refs, uint32_t count, uint32_t domid,
                          uint64_t frame, uint32_t flags);
int grant_entry_set_sub_page(domain *, uint32_t ref, uint32_t domid, uint64_t frame,
                             uint32_t page_off, uint32_t length, uint32_t flags);
int grant_entry_set_transitive(domain *, uint32_t ref, uint32_t domid, uint32_t trans_domid,
                               uint32_t trans_ref, uint32_t flags);
int64_t grant_entry_flags(domain *, uint32_t ref);
int64_t grant_entry_status(domain *, uint32_t ref);
int grant_entry_revoke(domain *, uint32_t ref);
int64_t grant_entries_revoke(domain *, const uint32_t *refs, uint32_t count);
int grant_entry_readonly(domain *, uint32_t ref, int readonly);
uint32_t grant_pins(domain *, uint32_t ref);
int64_t grant_pinned_frame(domain *, uint32_t ref);
uint32_t grant_pinned_refs(domain *);

/* grant_map.c */
int64_t grant_map(domain *mapper, domain *granter, void *map_grant_ref);
int64_t grant_unmap(domain *mapper, domain *granter, uint32_t ref, uint32_t flags, uint64_t host_addr,
                    uint64_t dev_bus_addr, uint64_t new_addr, uint32_t *done);
int grant_unpin(domain *mapper, domain *granter, uint32_t ref, uint32_t done);
int64_t grant_transfer(domain *from, void *transfer);

/* grant_copy.c */
int64_t grant_copy(domain *self, void *ops, uint32_t n, int allow_transitive);
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
    void *table;
    uint32_t table_size;
    uint32_t nr_table;
    uint32_t listed;
    uint32_t is_x86_32;
};
int64_t blk_take(struct blk_pass *);
int64_t blk_answer(struct blk_pass *, uint32_t n);

/* blk_data.c */
#define BLK_REFUSED ...
int64_t blk_copy(struct blk_pass *, uint32_t first, uint32_t end, const uint64_t *places,
                 void *local, uint64_t local_size);
int64_t blk_file(struct blk_pass *, uint32_t first, uint32_t end, int fd, uint64_t size);
int64_t blk_indirect(struct blk_pass *, uint32_t i, uint64_t sectors, int readonly,
                     uint32_t alignment);

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

/* netrx.c */
#define NET_TAGGED ...            /* facts of a frame: those that statistics count */
#define NET_LLC_SNAP ...
#define NET_IPV4 ...
#define NET_IPV6 ...
#define NET_TCP ...
#define NET_UDP ...
#define NET_GSO ...
#define NET_IP_SUCCEEDED ...
#define NET_IP_FAILED ...
#define NET_IP_NOT_VALIDATED ...
#define NET_TCP_SUCCEEDED ...
#define NET_TCP_FAILED ...
#define NET_TCP_NOT_VALIDATED ...
#define NET_FRAGMENT ...          /* the others */
#define NET_MALFORMED ...
#define NET_MINE ...
#define NET_MULTICAST ...
#define NET_BROADCAST ...
#define NET_LARGE ...             /* of a frame's flags: its sums wait until it was cut */
#define NET_OFFLOAD_IPV4_HEADER ...
#define NET_OFFLOAD_IPV4_TCP ...
#define NET_OFFLOAD_IPV4_UDP ...
#define NET_OFFLOAD_IPV6_TCP ...
#define NET_OFFLOAD_IPV6_UDP ...
#define NET_OFFLOAD_NEED_VALUE ...
struct net_headers {
    uint32_t facts;
    uint32_t length;
    uint32_t ethernet;
    uint32_t llc;
    uint32_t ip;
    uint32_t tcp;
    uint32_t udp;
    uint32_t end;
};
int64_t net_single(const void *responses, uint32_t n, uint32_t first, const uint32_t *pfns,
                   uint32_t size, void *pieces, void *ends, void *flags);
int net_parse(const void *frame, uint32_t size, struct net_headers *);
int net_receive(uint32_t offload, int calculate, const void *address, void *data, uint32_t size,
                const uint32_t *ends, const uint32_t *flags, uint32_t n, void *facts);

/* netfront.c */
#define FRONT_IDS 520
#define FRONT_LENGTH_BITS ...
#define FRONT_ROOM ...            /* why a call stopped */
#define FRONT_HEADERS ...
#define FRONT_NULL ...
#define FRONT_ID ...
#define FRONT_STATUS ...
struct net_sent {
    int64_t cookie;
    uint32_t length;
    uint32_t code;
    uint16_t left;
    uint8_t kind;
    uint8_t status;
    uint8_t kept;
};
struct net_front_table {
    uint32_t nr_free;
    uint32_t nulls;
    uint32_t in_flight;
    uint32_t pfns[520];
    uint32_t refs[520];
    struct net_sent packets[520];
    uint16_t owner[520];
    uint16_t free[520];
};
struct net_front {
    ring *ring;
    struct net_front_table *table;
    uint32_t domid;
    uint32_t grant_flags;
    uint32_t pad_to;
    uint32_t reserve;
    uint32_t headers;
    uint32_t linear;
    uint32_t pending;
    uint32_t stopped;
    uint32_t done;
    uint32_t answered;
    uint32_t own;
    int32_t number, status;
    int32_t busy;
};
struct net_completion {
    int64_t cookie, status, kind, length, payload, traits;
};
int64_t net_front_send(struct net_front *, const void *data, uint32_t size, const uint32_t *lengths,
                       const int64_t *cookies, uint32_t n, uint32_t most);
int64_t net_front_chain(struct net_front *, const void *data, uint32_t size, const uint32_t *pieces,
                        uint32_t n, uint32_t flags, const void *extras, uint32_t nr_extras,
                        struct net_sent *packet);
int64_t net_front_own(struct net_front *, uint32_t id, const void *extra);
int64_t net_front_publish(struct net_front *);
int64_t net_front_answer(struct net_front *, const void *responses, uint32_t n,
                         struct net_completion *completions);
uint32_t net_front_abort(struct net_front *, uint32_t status, struct net_completion *completions);

/* evtchn.c */
int evtchn_attach(domain *, uint32_t shared_info_frame, uint32_t nr_vcpus);
int evtchn_grow(domain *);
evtchn *evtchn_port(domain *, uint32_t port);
int evtchn_init(evtchn *, uint32_t vcpu);
int evtchn_set_vcpu(evtchn *, uint32_t vcpu);
int evtchn_set_priority(evtchn *, uint32_t priority);
uint32_t evtchn_get_priority(evtchn *);
int evtchn_is_saved(evtchn *);
void evtchn_set_polling(domain *, int polling);
int64_t evtchn_raise(evtchn *);
int64_t evtchn_set_pending(domain *, uint32_t port, uint32_t vcpu);
int64_t evtchn_unmask(evtchn *);
int64_t evtchn_clear(evtchn *);
int64_t evtchn_is_busy(evtchn *);
int64_t evtchn_polls_pending(evtchn *);
int64_t evtchn_save_pending(domain *);
int64_t evtchn_next_saved(domain *, uint32_t from, uint32_t to);
int64_t evtchn_is_pending(domain *, uint32_t port);
int64_t evtchn_is_masked(domain *, uint32_t port);
int evtchn_clear_pending(domain *, uint32_t port);
int evtchn_take_pending(domain *, uint32_t port);
int evtchn_mask(domain *, uint32_t port);
int64_t evtchn_guest_unmask(domain *, uint32_t port);
int64_t evtchn_scan(domain *, uint32_t vcpu, uint32_t *ports, uint32_t max, int ack);
int64_t evtchn_upcall_pending(domain *, uint32_t vcpu);
int64_t evtchn_take_upcall(domain *, uint32_t vcpu);
int64_t evtchn_deliverable(domain *, uint32_t vcpu);
upcall *upcall_new(domain *, uint32_t vcpu, int ack);
void upcall_free(upcall *);
uint32_t *upcall_ports(upcall *);
void upcall_port(upcall *, uint32_t port, int mine, int automask);
int64_t upcall_take(upcall *);

/* evtchn_fifo.c */
int fifo_init_control(domain *, uint32_t pfn, uint32_t offset, uint32_t vcpu);
int64_t fifo_expand_array(domain *, uint32_t pfn);
int fifo_destroy(domain *);
int evtchn_is_fifo(domain *);
int64_t fifo_take_ready(domain *, uint32_t vcpu);
int64_t fifo_head(domain *, uint32_t vcpu, uint32_t priority);
int64_t fifo_unlink(domain *, uint32_t port);
int fifo_has_frame(domain *, uint32_t frame);
int64_t fifo_read_word(domain *, uint32_t port);

/* vcpu.c */
int vcpu_attach(domain *, uint32_t nr_vcpus);
void vcpu_unregister_all(domain *);
int vcpu_info_register(domain *, uint32_t vcpu, uint64_t pfn, uint32_t offset);
int vcpu_area_register(domain *, uint32_t vcpu, int is_time, uint64_t address);
int vcpu_guest_area(domain *, uint32_t vcpu, int is_time, uint64_t address);
int vcpu_time_update(domain *, uint32_t vcpu, uint64_t tsc, uint64_t system_time,
                     uint32_t mul, int32_t shift, uint32_t flags, int force);
int vcpu_time_populate(domain *, uint32_t vcpu, uint64_t tsc, uint64_t system_time,
                       uint32_t mul, int32_t shift, uint32_t flags);
int vcpu_runstate_update(domain *, uint32_t vcpu, int32_t state, uint64_t entry_time,
                         const uint64_t *times, int flag);
int wallclock_update(domain *, uint64_t sec, uint32_t nsec);
int vcpu_unmask_upcall(domain *, uint32_t vcpu);

/* checksum.c */
uint32_t checksum_internet(const void *data, uint32_t size, uint32_t initial);
uint32_t toeplitz(const void *key, uint32_t key_size, const void *input, uint32_t size);
int gil_held(void);
