/*
 * Grant tables, version 1: the checks of an entry, pins, map, unmap and copy.
 * Order of checks and results: xen/common/grant_table.c as told by public/grant_table.h.
 */
#include "domain.h"

#define PIN_MAX 128
#define ENTRIES_PER_FRAME (FRAME_SIZE / 8)

static uint8_t *grant_entry(domain *d, uint32_t ref)
{
    uint32_t frame = ref / ENTRIES_PER_FRAME;

    if (frame >= d->nr_grant_frames)
        return NULL;
    return frame_address(d->m, d->grant_frames[frame]) + (ref % ENTRIES_PER_FRAME) * 8;
}

static int grant_table_grow(domain *d, uint32_t nr_frames)
{
    KERNEL_ENTER(d->m);
    if (nr_frames > d->max_grant_frames)
        return -EINVAL;
    while (d->nr_grant_frames < nr_frames) {
        int64_t frame = domain_alloc_xen_frame(d);

        if (frame < 0)
            return (int)frame;
        d->grant_frames[d->nr_grant_frames++] = (uint32_t)frame;
    }
    return 0;
}

static uint32_t grant_table_frames(domain *d) { return d->nr_grant_frames; }

static int64_t grant_table_frame(domain *d, uint32_t index)
{
    return index < d->nr_grant_frames ? (int64_t)d->grant_frames[index] : -EINVAL;
}

/* The granter's own writes: domid and frame, a barrier, then the flags (grant_table.h). */
static int grant_entry_set(domain *d, uint32_t ref, uint32_t domid, uint32_t frame, uint32_t flags)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *entry;

    KERNEL_ENTER(d->m);
    entry = grant_entry(d, ref);
    if (!entry)
        return -EINVAL;
    shared_store16(&c, entry + 2, (uint16_t)domid);
    shared_store32(&c, entry + 4, frame);
    barrier_write();
    shared_store16(&c, entry, (uint16_t)flags);
    return (int)call_end(&c, 0);
}

static int64_t grant_entry_flags(domain *d, uint32_t ref)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *entry;
    uint16_t flags;

    KERNEL_ENTER(d->m);
    entry = grant_entry(d, ref);
    if (!entry)
        return -EINVAL;
    flags = shared_load16(&c, entry);
    return call_end(&c, flags);
}

/* Flags to 0 only while neither reading nor writing is set; EBUSY otherwise. */
static int grant_entry_revoke(domain *d, uint32_t ref)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *entry;
    uint16_t flags;

    KERNEL_ENTER(d->m);
    entry = grant_entry(d, ref);
    if (!entry)
        return -EINVAL;
    flags = shared_load16(&c, entry);
    do {
        if (c.aborted)
            return KERNEL_E_ABORTED;
        if (flags & (GTF_reading | GTF_writing))
            return -EBUSY;
    } while (!shared_cas16(&c, entry, &flags, 0));
    return (int)call_end(&c, 0);
}

static uint32_t grant_pins(domain *d, uint32_t ref)
{
    if (ref >= d->nr_grant_frames * ENTRIES_PER_FRAME)
        return 0;
    return (uint32_t)d->active[ref].readers << 8 | d->active[ref].writers;
}

static uint32_t grant_pinned_refs(domain *d)
{
    uint32_t n = 0;

    for (uint32_t ref = 0; ref < d->nr_grant_frames * ENTRIES_PER_FRAME; ref++)
        n += d->active[ref].readers || d->active[ref].writers;
    return n;
}

/* Pin an entry for `by` and say which frame it is; GNTST_* in *status. */
static uint32_t entry_acquire(struct call *c, domain *granter, uint16_t by, uint32_t ref,
                              int readonly, int *status)
{
    struct active_entry *active;
    uint8_t *entry = grant_entry(granter, ref);
    uint32_t mapped, frame;
    uint16_t flags, set;

    if (!entry) {
        *status = GNTST_bad_gntref;
        return FRAME_NONE;
    }
    active = &granter->active[ref];
    *status = GNTST_general_error;
    if ((active->readers || active->writers) && active->domid != by)
        return FRAME_NONE;
    if ((readonly ? active->readers : active->writers) >= PIN_MAX)
        return FRAME_NONE;
    set = readonly ? GTF_reading : GTF_reading | GTF_writing;
    flags = shared_load16(c, entry);
    if (!active->readers && !active->writers) {
        uint16_t domid = shared_load16(c, entry + 2);

        do {
            if (c->aborted || (flags & GTF_type_mask) != GTF_permit_access ||
                (flags & GTF_sub_page) || domid != by || (!readonly && (flags & GTF_readonly)))
                return FRAME_NONE;
        } while (!shared_cas16(c, entry, &flags, flags | set));
        frame = shared_load32(c, entry + 4);
        mapped = frame < (1u << 28) ? p2m_touch(granter, frame) : 0;
        if (c->aborted || (mapped >> P2M_TYPE_SHIFT) != P2M_RAM) {
            shared_fetch_and16(c, entry, (uint16_t)~(GTF_reading | GTF_writing));
            *status = GNTST_bad_page;
            return FRAME_NONE;
        }
        active->domid = by;
        active->frame = mapped & P2M_FRAME_MASK;
    } else if (!readonly && !active->writers) {
        do {                            /* the first writer: only readonly is looked at */
            if (c->aborted || (flags & GTF_readonly))
                return FRAME_NONE;
        } while (!shared_cas16(c, entry, &flags, flags | set));
    }
    if (readonly)
        active->readers++;
    else
        active->writers++;
    granter->m->frames[active->frame].refs++;
    *status = GNTST_okay;
    return active->frame;
}

static void entry_release(struct call *c, domain *granter, uint32_t ref, int readonly)
{
    struct active_entry *active = &granter->active[ref];
    uint8_t *entry = grant_entry(granter, ref);
    uint16_t clear = 0;

    if (readonly)
        active->readers--;
    else
        active->writers--;
    if (!active->writers && !readonly)
        clear = GTF_writing;
    if (!active->writers && !active->readers)
        clear |= GTF_reading;
    if (clear)
        shared_fetch_and16(c, entry, (uint16_t)~clear);
    frame_put(granter->m, active->frame);
}

/* The frame, or a negative GNTST. */
static int64_t grant_acquire(domain *granter, uint32_t by, uint32_t ref, int readonly)
{
    struct call c = call_begin(granter->m, by, ACCESS_HYPERVISOR);
    uint32_t frame;
    int status;

    KERNEL_ENTER(granter->m);
    frame = entry_acquire(&c, granter, (uint16_t)by, ref, readonly, &status);
    return call_end(&c, status ? status : (int64_t)frame);
}

static int grant_release(domain *granter, uint32_t ref, int readonly)
{
    struct call c = call_begin(granter->m, granter->domid, ACCESS_HYPERVISOR);

    KERNEL_ENTER(granter->m);
    if (ref >= granter->nr_grant_frames * ENTRIES_PER_FRAME ||
        !(readonly ? granter->active[ref].readers : granter->active[ref].writers))
        return -EINVAL;
    entry_release(&c, granter, ref, readonly);
    return (int)call_end(&c, 0);
}

/* GNTMAP_host_map of one entry at a pfn of the mapper; 0 or a negative GNTST. */
static int64_t grant_map(domain *mapper, domain *granter, uint32_t ref, int readonly, uint32_t pfn)
{
    struct call c = call_begin(granter->m, mapper->domid, ACCESS_HYPERVISOR);
    uint32_t frame;
    int status;

    KERNEL_ENTER(granter->m);
    frame = entry_acquire(&c, granter, mapper->domid, ref, readonly, &status);
    if (status)
        return call_end(&c, status);
    if (p2m_place(mapper, pfn, frame, readonly ? P2M_GRANT_RO : P2M_GRANT_RW)) {
        entry_release(&c, granter, ref, readonly);
        return call_end(&c, GNTST_general_error);
    }
    return call_end(&c, GNTST_okay);
}

static int grant_unmap(domain *mapper, domain *granter, uint32_t ref, int readonly, uint32_t pfn)
{
    int type;

    KERNEL_ENTER(granter->m);
    type = p2m_type(mapper, pfn);
    if (type != (readonly ? P2M_GRANT_RO : P2M_GRANT_RW))
        return GNTST_general_error;
    p2m_clear(mapper, pfn);
    return grant_release(granter, ref, readonly);
}

struct copy_side {
    uint8_t *page;
    int pinned;
};

static int copy_side_acquire(struct call *c, domain *self, domain *other, uint64_t u, int gref,
                             int write, struct copy_side *side)
{
    int status = GNTST_okay;

    side->pinned = 0;
    if (gref) {
        uint32_t frame = entry_acquire(c, other, self->domid, (uint32_t)u, !write, &status);

        if (status)
            return status;
        side->pinned = 1;
        side->page = frame_address(self->m, frame);
        return GNTST_okay;
    }
    side->page = u < (1u << 28) ? page_address(self, (uint32_t)u, write) : NULL;
    return side->page ? GNTST_okay : GNTST_bad_page;
}

static uint64_t copy_name(const struct gnttab_copy_ptr *side, int gref)
{
    return gref ? side->u.ref : side->u.gmfn;
}

/*
 * GNTTABOP_copy between two named domains (each side's domid was resolved by the caller);
 * every op gets its status. Returns how many did not end in GNTST_okay.
 */
static int64_t grant_copy(domain *self, domain *source, domain *dest, void *ops, uint32_t n)
{
    struct call c = call_begin(self->m, self->domid, ACCESS_HYPERVISOR);
    struct gnttab_copy *op = ops;
    int64_t failed = 0;

    KERNEL_ENTER(self->m);
    for (uint32_t i = 0; i < n && !c.aborted; i++, op++) {
        struct copy_side from = { 0 }, to = { 0 };
        int source_gref = op->flags & GNTCOPY_source_gref, dest_gref = op->flags & GNTCOPY_dest_gref;

        op->status = GNTST_okay;
        if (!op->len)
            continue;
        op->status = (int16_t)copy_side_acquire(&c, self, source, copy_name(&op->source, source_gref),
                                                source_gref, 0, &from);
        if (!op->status)
            op->status = (int16_t)copy_side_acquire(&c, self, dest, copy_name(&op->dest, dest_gref),
                                                    dest_gref, 1, &to);
        if (!op->status && ((uint32_t)op->source.offset + op->len > FRAME_SIZE ||
                            (uint32_t)op->dest.offset + op->len > FRAME_SIZE))
            op->status = GNTST_bad_copy_arg;
        if (!op->status && !access_begins(&c, ACCESS_READ, from.page + op->source.offset, op->len) &&
            !access_begins(&c, ACCESS_WRITE, to.page + op->dest.offset, op->len))
            memmove(to.page + op->dest.offset, from.page + op->source.offset, op->len);
        if (to.pinned)
            entry_release(&c, dest, op->dest.u.ref, 0);
        if (from.pinned)
            entry_release(&c, source, op->source.u.ref, 1);
        failed += op->status != GNTST_okay;
    }
    return call_end(&c, failed);
}

/* One piece between a granted page and private memory of `self`; a GNTST. */
static inline int copy_piece(struct call *c, domain *self, domain *granter, int to_guest,
                             uint32_t ref, uint32_t offset, uint32_t len, uint8_t *local)
{
    uint32_t frame;
    uint8_t *page;
    int status;

    if (!len)
        return GNTST_okay;
    if (offset + len > FRAME_SIZE || len > FRAME_SIZE)
        return GNTST_bad_copy_arg;
    frame = entry_acquire(c, granter, self->domid, ref, !to_guest, &status);
    if (status)
        return status;
    page = frame_address(self->m, frame) + offset;
    if (to_guest)
        shared_copy_in(c, page, local, len);
    else
        shared_copy_out(c, local, page, len);
    entry_release(c, granter, ref, !to_guest);
    return GNTST_okay;
}

/*
 * ops: n x {ref, offset | len << 16, local offset}, len up to 4096. What GNTTABOP_copy does
 * with a buffer of the caller's own, without a pfn for that buffer. Returns how many failed.
 */
static int64_t grant_copy_local(domain *self, domain *granter, int to_guest, const uint32_t *ops,
                                uint32_t n, void *local, uint64_t local_size, int8_t *status)
{
    struct call c = call_begin(self->m, self->domid, 0);
    int64_t failed = 0;

    KERNEL_ENTER(self->m);
    for (uint32_t i = 0; i < n && !c.aborted; i++, ops += 3) {
        uint32_t len = ops[1] >> 16;

        if (ops[2] > local_size || len > local_size - ops[2])
            return -EINVAL;
        status[i] = (int8_t)copy_piece(&c, self, granter, to_guest, ops[0], ops[1] & 0xffff, len,
                                       (uint8_t *)local + ops[2]);
        failed += status[i] != GNTST_okay;
    }
    return call_end(&c, failed);
}
