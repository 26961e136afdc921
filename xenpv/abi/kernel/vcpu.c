/*
 * What Xen writes into a guest's memory about its vcpus: time, runstate, wall clock, and the
 * places where a guest asked to have them (common/domain.c, arch/x86/time.c, common/time.c;
 * public/vcpu.h). Xen holds a lock during each write, so only memory may change meanwhile.
 */
#include "domain.h"

#define GUEST_ADDRESS_NONE UINT64_MAX     /* no area registered, and how a guest unregisters one */

/* version_update_begin of Xen: odd whatever the guest left there. The end of it is + 1. */
static inline uint32_t version_odd(uint32_t version) { return (version + 1) | 1; }

/* A 32-bit guest aligns u64 to 4: there the store is a copy. */
static inline void shared_put64(struct call *c, uint8_t *p, uint64_t value)
{
    if ((uintptr_t)p % 8)
        shared_copy_in(c, p, &value, 8);
    else
        shared_store64(c, p, value);
}

static uint8_t *vcpu_info_slot(domain *d, uint32_t vcpu)
{
    return vcpu < NR_LEGACY_VCPUS ? d->shared_info + vcpu * VCPU_INFO_SIZE : d->dummy_vcpu_info;
}

/* After the evtchn_attach that told of shared_info. A vcpu beyond shared_info has the dummy until it registers one. */
static int vcpu_attach(domain *d, uint32_t nr_vcpus)
{
    KERNEL_ENTER(d->m);
    if (!d->shared_info || d->vcpu_areas || nr_vcpus > MAX_VCPUS)
        return -EINVAL;
    d->vcpu_areas = calloc(nr_vcpus, sizeof(*d->vcpu_areas));
    if (!d->vcpu_areas)
        return -ENOMEM;
    if (nr_vcpus > NR_LEGACY_VCPUS) {
        int64_t frame = domain_alloc_xen_frame(d);

        if (frame < 0) {
            free(d->vcpu_areas);
            d->vcpu_areas = NULL;
            return (int)frame;
        }
        d->dummy_vcpu_info = frame_address(d->m, (uint32_t)frame);
    }
    for (uint32_t vcpu = 0; vcpu < nr_vcpus; vcpu++) {
        d->vcpu_info[vcpu] = vcpu_info_slot(d, vcpu);
        d->vcpu_areas[vcpu].runstate_guest = GUEST_ADDRESS_NONE;
        d->vcpu_areas[vcpu].time_guest = GUEST_ADDRESS_NONE;
    }
    d->nr_vcpu_areas = nr_vcpus;
    return 0;
}

/* unmap_guest_area for all: a dying domain's pages, or a reset, go back to where they began. */
static void vcpu_unregister_all(domain *d)
{
    for (uint32_t vcpu = 0; vcpu < d->nr_vcpu_areas; vcpu++) {
        struct vcpu_areas *areas = &d->vcpu_areas[vcpu];

        if (areas->info_page)
            page_drop(d, areas->info_page);
        if (areas->runstate)
            page_drop(d, areas->runstate);
        if (areas->time)
            page_drop(d, areas->time);
        memset(areas, 0, sizeof(*areas));
        areas->runstate_guest = areas->time_guest = GUEST_ADDRESS_NONE;
        d->vcpu_info[vcpu] = vcpu_info_slot(d, vcpu);
    }
}

static void vcpu_release(domain *d)
{
    vcpu_unregister_all(d);
    if (d->dummy_vcpu_info)
        xen_frame_put(d->m, (uint32_t)((d->dummy_vcpu_info - d->m->base) >> FRAME_SHIFT));
    free(d->vcpu_areas);
    d->vcpu_areas = NULL;
    d->dummy_vcpu_info = NULL;
    d->nr_vcpu_areas = 0;
}

/* The place in a held page that map_guest_area of Xen would map, or NULL and an errno. */
static uint8_t *area_hold(domain *d, uint64_t address, uint32_t size, int *error)
{
    uint64_t pfn = address >> FRAME_SHIFT;
    uint8_t *page;

    *error = -ENXIO;
    if (pfn != (address + size - 1) >> FRAME_SHIFT || address % (d->is_32bit ? 4 : 8))
        return NULL;
    *error = -EINVAL;
    page = pfn > UINT32_MAX ? NULL : page_hold(d, (uint32_t)pfn);
    return page ? page + (address & (FRAME_SIZE - 1)) : NULL;
}

/* Contents move; then everything counts as pending. 1: the vcpu has to be kicked. */
static int vcpu_info_register(domain *d, uint32_t vcpu, uint64_t pfn, uint32_t offset)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint8_t info[VCPU_INFO_SIZE] = { 0 }, *place, *old;
    int error;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    if (offset >= FRAME_SIZE || pfn > UINT64_MAX >> FRAME_SHIFT)
        return -EINVAL;
    if (d->vcpu_areas[vcpu].info_page)
        return -EBUSY;
    place = area_hold(d, pfn << FRAME_SHIFT | offset, VCPU_INFO_SIZE, &error);
    if (!place)
        return error;
    old = d->vcpu_info[vcpu];
    if (old == d->dummy_vcpu_info)
        info[offsetof(struct vcpu_info, evtchn_upcall_mask)] = 1;
    else
        shared_copy_out(&c, info, old, VCPU_INFO_SIZE);
    shared_copy_in(&c, place, info, VCPU_INFO_SIZE);
    if (d->is_32bit)
        shared_store32(&c, place + offsetof(struct vcpu_info_x86_32, evtchn_pending_sel),
                       UINT32_MAX);
    else
        shared_store64(&c, place + offsetof(struct vcpu_info, evtchn_pending_sel), UINT64_MAX);
    if (c.aborted) {
        page_drop(d, place);
        return KERNEL_E_ABORTED;
    }
    d->vcpu_areas[vcpu].info_page = place;
    d->vcpu_info[vcpu] = place;
    barrier_write();
    return (int)call_end(&c, !shared_exchange8(&c, place, 1));
}

/* A runstate (0) or time (1) area by guest-physical address; all ones unregisters. */
static int vcpu_area_register(domain *d, uint32_t vcpu, int is_time, uint64_t address)
{
    uint8_t **area, *place = NULL;
    uint32_t size = is_time ? sizeof(struct vcpu_time_info)
        : d->is_32bit ? sizeof(struct vcpu_runstate_info_x86_32)
                      : sizeof(struct vcpu_runstate_info);
    int error;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    area = is_time ? &d->vcpu_areas[vcpu].time : &d->vcpu_areas[vcpu].runstate;
    if (address != GUEST_ADDRESS_NONE) {
        place = area_hold(d, address, size, &error);
        if (!place)
            return error;
    }
    if (*area)
        page_drop(d, *area);
    *area = place;
    return 0;
}

/*
 * The older form: an address in the guest, looked up at each write (here a guest's addresses
 * are its physical ones). It may cross pages; what is not there at a write is not written.
 */
static int vcpu_guest_area(domain *d, uint32_t vcpu, int is_time, uint64_t address)
{
    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    if (is_time)
        d->vcpu_areas[vcpu].time_guest = address;
    else
        d->vcpu_areas[vcpu].runstate_guest = address;
    return 0;
}

static void guest_put(struct call *c, domain *d, uint64_t address, const void *private, uint32_t n)
{
    const uint8_t *from = private;

    while (n) {
        uint32_t offset = (uint32_t)(address & (FRAME_SIZE - 1));
        uint32_t piece = FRAME_SIZE - offset < n ? FRAME_SIZE - offset : n;
        uint64_t pfn = address >> FRAME_SHIFT;
        uint8_t *page = pfn > UINT32_MAX ? NULL : page_address(d, (uint32_t)pfn, 1);

        if (!page)
            return;
        shared_copy_in(c, page + offset, from, piece);
        from += piece;
        address += piece;
        n -= piece;
    }
}

/* write_time_guest_area: `version` is the odd one, what ends the write is the next. */
static void time_put(struct call *c, uint8_t *place, const struct vcpu_time_info *t)
{
    shared_store32(c, place + offsetof(struct vcpu_time_info, version), t->version);
    barrier_write();
    shared_put64(c, place + offsetof(struct vcpu_time_info, tsc_timestamp), t->tsc_timestamp);
    shared_put64(c, place + offsetof(struct vcpu_time_info, system_time), t->system_time);
    shared_store32(c, place + offsetof(struct vcpu_time_info, tsc_to_system_mul),
                   t->tsc_to_system_mul);
    shared_store8(c, place + offsetof(struct vcpu_time_info, tsc_shift), (uint8_t)t->tsc_shift);
    shared_store8(c, place + offsetof(struct vcpu_time_info, flags), t->flags);
    barrier_write();
    shared_store32(c, place + offsetof(struct vcpu_time_info, version), t->version + 1);
}

static void time_put_guest(struct call *c, domain *d, uint64_t address,
                           const struct vcpu_time_info *t)
{
    uint32_t even = t->version + 1;

    guest_put(c, d, address, &t->version, sizeof(t->version));
    barrier_write();
    guest_put(c, d, address, t, sizeof(*t));
    barrier_write();
    guest_put(c, d, address, &even, sizeof(even));
}

static struct vcpu_time_info time_record(uint64_t tsc, uint64_t system_time, uint32_t mul,
                                         int32_t shift, uint32_t flags)
{
    struct vcpu_time_info t = { 0 };

    t.tsc_timestamp = tsc;
    t.system_time = system_time;
    t.tsc_to_system_mul = mul;
    t.tsc_shift = (int8_t)shift;
    t.flags = (uint8_t)flags;
    return t;
}

/*
 * update_vcpu_system_time: the record in vcpu_info, and the areas beside it. 0: it said so
 * already and was left alone, unless `force`. The guest may write the version: read once.
 */
static int vcpu_time_update(domain *d, uint32_t vcpu, uint64_t tsc, uint64_t system_time,
                            uint32_t mul, int32_t shift, uint32_t flags, int force)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    struct vcpu_time_info t = time_record(tsc, system_time, mul, shift, flags), now = { 0 };
    const uint32_t first = offsetof(struct vcpu_time_info, tsc_timestamp);
    const uint32_t last = offsetof(struct vcpu_time_info, pad1);
    struct vcpu_areas *areas;
    uint8_t *place;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    if (d->vcpu_info[vcpu] == d->dummy_vcpu_info)
        return 0;
    place = d->vcpu_info[vcpu] + offsetof(struct vcpu_info, time);
    t.version = shared_load32(&c, place + offsetof(struct vcpu_time_info, version));
    if (!force) {
        shared_copy_out(&c, (uint8_t *)&now + first, place + first, last - first);
        if (!memcmp((uint8_t *)&now + first, (uint8_t *)&t + first, last - first))
            return (int)call_end(&c, 0);
    }
    t.version = version_odd(t.version);
    time_put(&c, place, &t);
    areas = &d->vcpu_areas[vcpu];
    if (areas->time)
        time_put(&c, areas->time, &t);
    else if (areas->time_guest != GUEST_ADDRESS_NONE)
        time_put_guest(&c, d, areas->time_guest, &t);
    return (int)call_end(&c, 1);
}

/* force_update_secondary_system_time: a new area by itself; its version ends at 0. */
static int vcpu_time_populate(domain *d, uint32_t vcpu, uint64_t tsc, uint64_t system_time,
                              uint32_t mul, int32_t shift, uint32_t flags)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    struct vcpu_time_info t = time_record(tsc, system_time, mul, shift, flags);

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    t.version = UINT32_MAX;
    if (d->vcpu_areas[vcpu].time)
        time_put(&c, d->vcpu_areas[vcpu].time, &t);
    return (int)call_end(&c, 0);
}

/* The runstate in the guest's layout; the offset of state_entry_time in it. */
static uint32_t runstate_layout(const domain *d, uint8_t *out, int32_t state,
                                uint64_t entry_time, const uint64_t *times)
{
    uint32_t entry = d->is_32bit ? offsetof(struct vcpu_runstate_info_x86_32, state_entry_time)
                                 : offsetof(struct vcpu_runstate_info, state_entry_time);

    memcpy(out, &state, sizeof(state));
    memcpy(out + entry, &entry_time, 8);
    memcpy(out + entry + 8, times, 4 * 8);
    return entry;
}

static void runstate_put(struct call *c, const domain *d, uint8_t *place, int32_t state,
                         uint64_t entry_time, const uint64_t *times)
{
    uint8_t layout[sizeof(struct vcpu_runstate_info)] = { 0 };
    uint32_t entry = runstate_layout(d, layout, state, entry_time, times);

    shared_put64(c, place + entry, entry_time | XEN_RUNSTATE_UPDATE);
    barrier_write();
    shared_store32(c, place, (uint32_t)state);
    for (uint32_t i = 0; i < 4; i++)
        shared_put64(c, place + entry + 8 + 8 * i, times[i]);
    barrier_write();
    shared_put64(c, place + entry, entry_time);
}

/* By guest address the flag is written, a byte of it, only if VMASST asked for it. */
static void runstate_put_guest(struct call *c, domain *d, uint64_t address, int32_t state,
                               uint64_t entry_time, const uint64_t *times, int flag)
{
    uint8_t layout[sizeof(struct vcpu_runstate_info)] = { 0 };
    uint32_t size = d->is_32bit ? sizeof(struct vcpu_runstate_info_x86_32) : sizeof(layout);
    uint32_t top = 7 + runstate_layout(d, layout, state, entry_time, times);

    if (flag) {
        layout[top] |= XEN_RUNSTATE_UPDATE >> 56;
        guest_put(c, d, address + top, layout + top, 1);
        barrier_write();
    }
    guest_put(c, d, address, layout, size);
    if (flag) {
        layout[top] &= (uint8_t) ~(XEN_RUNSTATE_UPDATE >> 56);
        barrier_write();
        guest_put(c, d, address + top, layout + top, 1);
    }
}

/* update_runstate_area; `times` has four. */
static int vcpu_runstate_update(domain *d, uint32_t vcpu, int32_t state, uint64_t entry_time,
                                const uint64_t *times, int flag)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    struct vcpu_areas *areas;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    areas = &d->vcpu_areas[vcpu];
    if (areas->runstate)
        runstate_put(&c, d, areas->runstate, state, entry_time, times);
    else if (areas->runstate_guest != GUEST_ADDRESS_NONE)
        runstate_put_guest(&c, d, areas->runstate_guest, state, entry_time, times, flag);
    return (int)call_end(&c, 0);
}

/* update_domain_wallclock_time. */
static int wallclock_update(domain *d, uint64_t sec, uint32_t nsec)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint8_t *at, *high;
    uint32_t version;

    KERNEL_ENTER(d->m);
    if (!d->shared_info)
        return -EINVAL;
    at = d->shared_info + (d->is_32bit ? offsetof(struct shared_info_x86_32, wc_version)
                                       : offsetof(struct shared_info, wc_version));
    high = d->shared_info + (d->is_32bit ? offsetof(struct shared_info_x86_32, arch.wc_sec_hi)
                                         : offsetof(struct shared_info, wc_sec_hi));
    version = version_odd(shared_load32(&c, at));
    shared_store32(&c, at, version);
    barrier_write();
    shared_store32(&c, at + 4, (uint32_t)sec);
    shared_store32(&c, at + 8, nsec);
    shared_store32(&c, high, (uint32_t)(sec >> 32));
    barrier_write();
    shared_store32(&c, at, version + 1);
    return (int)call_end(&c, 0);
}

/* local_event_delivery_enable, then: is an upcall deliverable? Xen does both for a block. */
static int vcpu_unmask_upcall(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint8_t *info;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpu_areas)
        return -ENOENT;
    info = d->vcpu_info[vcpu];
    shared_store8(&c, info + offsetof(struct vcpu_info, evtchn_upcall_mask), 0);
    barrier_full();
    return (int)call_end(&c, !!shared_load8(&c, info));
}
