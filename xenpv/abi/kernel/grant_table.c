/*
 * The grant table of a domain: frames, versions, and the granter's own writes to it.
 * Layouts and the granter's protocol: public/grant_table.h; growth, set_version and swap:
 * xen/common/grant_table.c.
 */
#include "domain.h"

#define REFS_PER_CHUNK (FRAME_SIZE / 8)         /* the entries of a version 1 frame */
#define STATUS_PER_FRAME (FRAME_SIZE / 2)
#define GTF_in_use (GTF_reading | GTF_writing)

/* An entry in memory and its pins. `status` holds reading and writing: in version 1 its flags. */
struct grant_entry {
    uint8_t *shared;
    uint16_t *status;
    struct active_entry *active;
};

static inline uint32_t grant_table_entries(domain *d)
{
    return d->nr_grant_frames << (d->grant_version == 2 ? 8 : 9);
}

/* 0 or GNTST_bad_gntref. */
static inline int entry_find(domain *d, uint32_t ref, struct grant_entry *e)
{
    machine *m = d->m;

    if (ref >= grant_table_entries(d))
        return GNTST_bad_gntref;
    e->active = &d->active[ref / REFS_PER_CHUNK][ref % REFS_PER_CHUNK];
    if (__builtin_expect(d->grant_version == 1, 1)) {
        e->shared = frame_address(m, d->grant_frames[ref >> 9]) + (ref & 511) * 8;
        e->status = (uint16_t *)e->shared;
    } else {
        e->shared = frame_address(m, d->grant_frames[ref >> 8]) + (ref & 255) * 16;
        e->status = (uint16_t *)frame_address(m, d->status_frames[ref / STATUS_PER_FRAME]) +
                    ref % STATUS_PER_FRAME;
    }
    return GNTST_okay;
}

static int grant_table_limit(domain *d, uint32_t max_grant_frames)
{
    uint32_t *frames, *status;
    struct active_entry **active;

    if (max_grant_frames <= d->max_grant_frames)
        return 0;
    frames = realloc(d->grant_frames, max_grant_frames * sizeof(*frames));
    if (!frames)
        return -ENOMEM;
    d->grant_frames = frames;
    status = realloc(d->status_frames, (max_grant_frames / 8 + 1) * sizeof(*status));
    if (!status)
        return -ENOMEM;
    d->status_frames = status;
    active = realloc(d->active, max_grant_frames * sizeof(*active));
    if (!active)
        return -ENOMEM;
    memset(active + d->max_grant_frames, 0,
           (max_grant_frames - d->max_grant_frames) * sizeof(*active));
    d->active = active;
    d->max_grant_frames = max_grant_frames;
    if (!d->grant_version)
        d->grant_version = 1;
    return 0;
}

static void status_frames_drop(domain *d, uint32_t keep)
{
    while (d->nr_status_frames > keep)
        frame_put(d->m, d->status_frames[--d->nr_status_frames]);
}

static int status_frames_grow(domain *d, uint32_t nr_grant_frames)
{
    uint32_t before = d->nr_status_frames;

    while (d->nr_status_frames < (nr_grant_frames + 7) / 8) {
        int64_t frame = domain_alloc_xen_frame(d);

        if (frame < 0) {
            status_frames_drop(d, before);
            return (int)frame;
        }
        d->status_frames[d->nr_status_frames++] = (uint32_t)frame;
    }
    return 0;
}

/* All of it or nothing: EINVAL above the maximum, ENOMEM. */
static int grant_table_grow(domain *d, uint32_t nr_frames)
{
    uint32_t before = d->nr_grant_frames, status_before = d->nr_status_frames;
    int error = 0;

    KERNEL_ENTER(d->m);
    if (nr_frames > d->max_grant_frames)
        return -EINVAL;
    if (d->grant_version == 2)
        error = status_frames_grow(d, nr_frames);
    while (!error && d->nr_grant_frames < nr_frames) {
        struct active_entry **chunk = &d->active[d->nr_grant_frames];
        int64_t frame;

        if (!*chunk)
            *chunk = calloc(REFS_PER_CHUNK, sizeof(**chunk));
        frame = *chunk ? domain_alloc_xen_frame(d) : -ENOMEM;
        if (frame < 0)
            error = (int)frame;
        else
            d->grant_frames[d->nr_grant_frames++] = (uint32_t)frame;
    }
    if (!error)
        return 0;
    while (d->nr_grant_frames > before)
        frame_put(d->m, d->grant_frames[--d->nr_grant_frames]);
    status_frames_drop(d, status_before);
    return error;
}

static void grant_table_free(domain *d)
{
    for (uint32_t i = 0; i < d->nr_grant_frames; i++)
        frame_put(d->m, d->grant_frames[i]);
    status_frames_drop(d, 0);
    for (uint32_t i = 0; i < d->max_grant_frames; i++)
        free(d->active[i]);
    free(d->grant_frames);
    free(d->status_frames);
    free(d->active);
    d->grant_frames = d->status_frames = NULL;
    d->active = NULL;
    d->nr_grant_frames = d->max_grant_frames = 0;
}

/* From its death on no entry of it is pinned anew. */
static int grant_table_dying(domain *d)
{
    KERNEL_ENTER(d->m);
    d->is_dying = 1;
    return 0;
}

static int grant_table_pv(domain *d, int is_pv)
{
    KERNEL_ENTER(d->m);
    d->is_pv = !!is_pv;
    return 0;
}

static uint32_t grant_table_frames(domain *d) { return d->nr_grant_frames; }
static uint32_t grant_table_status_frames(domain *d) { return d->nr_status_frames; }
static uint32_t grant_table_version(domain *d) { return d->grant_version; }

static int64_t grant_table_frame(domain *d, uint32_t index)
{
    return index < d->nr_grant_frames ? (int64_t)d->grant_frames[index] : -EINVAL;
}

static int64_t grant_table_status_frame(domain *d, uint32_t index)
{
    return index < d->nr_status_frames ? (int64_t)d->status_frames[index] : -EINVAL;
}

/* The pfn that holds a frame of RAM (the machine-to-phys table), or P2M_FRAME_MASK. */
static uint32_t p2m_find(domain *d, uint32_t frame)
{
    uint32_t wanted = ((uint32_t)P2M_RAM << P2M_TYPE_SHIFT) | frame;

    for (uint32_t i = 0; i < d->nr_owned; i++)
        for (uint32_t at = 0; at < P2M_LEAF; at++)
            if (d->leaves[d->owned[i]][at] == wanted)
                return d->owned[i] * P2M_LEAF + at;
    return P2M_FRAME_MASK;
}

/* Where a frame of Xen's lies in the physmap (mfn_to_gfn); ENOENT: nowhere. A PV guest: there. */
static int64_t grant_frame_gfn(domain *d, uint32_t frame)
{
    uint32_t pfn = d->is_pv ? frame : d->m->frames[frame].link;

    return pfn == FRAME_NONE ? -ENOENT : (int64_t)pfn;
}

/* EBUSY if somebody else has a status frame mapped; else they leave the physmap and go. */
static int status_frames_unplace(domain *d)
{
    for (uint32_t i = 0; i < d->nr_status_frames; i++) {
        const struct frame_info *info = &d->m->frames[d->status_frames[i]];

        if (info->refs != 1u + (info->link != FRAME_NONE))
            return -EBUSY;
    }
    for (uint32_t i = 0; i < d->nr_status_frames; i++) {
        uint32_t pfn = d->m->frames[d->status_frames[i]].link;

        if (pfn != FRAME_NONE)
            p2m_clear(d, pfn);
    }
    status_frames_drop(d, 0);
    return 0;
}

/* A reserved entry between two versions: what both can say. */
struct reserved_entry {
    uint32_t header;                /* flags, domid << 16 */
    uint64_t frame;
};

/* ERANGE if version 1 cannot say it. */
static int reserved_load(struct call *c, domain *d, struct reserved_entry *kept)
{
    for (uint32_t ref = 0; ref < GNTTAB_NR_RESERVED_ENTRIES; ref++) {
        struct grant_entry e;
        uint32_t type;

        kept[ref] = (struct reserved_entry){ 0 };
        if (entry_find(d, ref, &e))
            continue;
        kept[ref].header = shared_load32(c, e.shared);
        if (d->grant_version == 1) {
            kept[ref].frame = shared_load32(c, e.shared + 4);
            continue;
        }
        kept[ref].frame = shared_load64(c, e.shared + 8);
        type = kept[ref].header & GTF_type_mask;
        if (type == GTF_transitive || (type == GTF_permit_access && kept[ref].frame >> 32))
            return -ERANGE;
        if (type == GTF_permit_access)
            kept[ref].header |= shared_load16(c, e.status) & GTF_in_use;
        else
            kept[ref] = (struct reserved_entry){ 0 };
    }
    return 0;
}

static void reserved_store(struct call *c, domain *d, const struct reserved_entry *kept)
{
    for (uint32_t ref = 0; ref < GNTTAB_NR_RESERVED_ENTRIES; ref++) {
        struct grant_entry e;

        if (entry_find(d, ref, &e))
            return;
        if (d->grant_version == 1) {
            shared_store32(c, e.shared + 4, (uint32_t)kept[ref].frame);
            shared_store32(c, e.shared, kept[ref].header);
        } else {
            shared_store16(c, e.status, kept[ref].header & GTF_in_use);
            shared_store64(c, e.shared + 8, kept[ref].frame);
            shared_store32(c, e.shared, kept[ref].header & ~(uint32_t)GTF_in_use);
        }
    }
}

/*
 * GNTTABOP_set_version for 1 or 2; what the maximum forbids was refused before. EBUSY: a
 * reference above the reserved ones is pinned, or a status frame is mapped elsewhere (XSA-255).
 * EAGAIN: an operation on some table is under way. ERANGE, ENOMEM.
 */
static int grant_table_set_version(domain *d, uint32_t version)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    struct reserved_entry kept[GNTTAB_NR_RESERVED_ENTRIES];
    int error;

    KERNEL_ENTER(d->m);
    if (version == d->grant_version)
        return 0;
    for (uint32_t ref = GNTTAB_NR_RESERVED_ENTRIES; ref < grant_table_entries(d); ref++)
        if (d->active[ref / REFS_PER_CHUNK][ref % REFS_PER_CHUNK].pin)
            return -EBUSY;
    if (d->grant_ops)
        return -EAGAIN;
    error = reserved_load(&c, d, kept);
    if (error || c.aborted)
        return (int)call_end(&c, error);
    error = version == 2 ? status_frames_grow(d, d->nr_grant_frames) : status_frames_unplace(d);
    if (error)
        return error;
    d->grant_version = (uint8_t)version;
    for (uint32_t i = 0; i < d->nr_grant_frames; i++)
        shared_clear(&c, frame_address(d->m, d->grant_frames[i]), FRAME_SIZE);
    reserved_store(&c, d, kept);
    return (int)call_end(&c, 0);
}

/* GNTTABOP_swap_grant_ref; a GNTST. */
static int grant_swap(domain *d, uint32_t ref_a, uint32_t ref_b)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint32_t words = d->grant_version == 2 ? 4 : 2;
    struct grant_entry a, b;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref_a, &a) || entry_find(d, ref_b, &b))
        return GNTST_bad_gntref;
    if (ref_a == ref_b)
        return GNTST_okay;
    if (a.active->pin || b.active->pin)
        return GNTST_eagain;
    for (uint32_t i = 0; i < words; i++) {
        uint32_t of_a = shared_load32(&c, a.shared + 4 * i);

        shared_store32(&c, a.shared + 4 * i, shared_load32(&c, b.shared + 4 * i));
        shared_store32(&c, b.shared + 4 * i, of_a);
    }
    if (d->grant_version == 2) {
        uint16_t of_a = shared_load16(&c, a.status);

        shared_store16(&c, a.status, shared_load16(&c, b.status));
        shared_store16(&c, b.status, of_a);
    }
    return (int)call_end(&c, GNTST_okay);
}

/* The granter's own writes: domid and frame, a barrier, then the flags (grant_table.h). */
static int grant_entry_set(domain *d, uint32_t ref, uint32_t domid, uint64_t frame, uint32_t flags)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref, &e))
        return -EINVAL;
    if (d->grant_version == 1 && frame >> 32)
        return -ERANGE;
    shared_store16(&c, e.shared + 2, (uint16_t)domid);
    if (d->grant_version == 1)
        shared_store32(&c, e.shared + 4, (uint32_t)frame);
    else
        shared_store64(&c, e.shared + 8, frame);
    barrier_write();
    shared_store16(&c, e.shared, (uint16_t)flags);
    return (int)call_end(&c, 0);
}

/* Entry after entry, up to the first that is refused. */
static int grant_entries_set(domain *d, const uint32_t *refs, const uint64_t *frames,
                             uint32_t count, uint32_t domid, uint32_t flags)
{
    int done = 0;

    for (uint32_t i = 0; i < count && !done; i++)
        done = grant_entry_set(d, refs[i], domid, frames[i], flags);
    return done;
}

/* The same for frames that lie side by side. */
static int grant_entries_set_run(domain *d, const uint32_t *refs, uint32_t count, uint32_t domid,
                                 uint64_t frame, uint32_t flags)
{
    int done = 0;

    for (uint32_t i = 0; i < count && !done; i++)
        done = grant_entry_set(d, refs[i], domid, frame + i, flags);
    return done;
}

/* Version 2 only, as the next: EINVAL. */
static int grant_entry_set_sub_page(domain *d, uint32_t ref, uint32_t domid, uint64_t frame,
                                    uint32_t page_off, uint32_t length, uint32_t flags)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;

    KERNEL_ENTER(d->m);
    if (d->grant_version != 2 || entry_find(d, ref, &e))
        return -EINVAL;
    shared_store16(&c, e.shared + 2, (uint16_t)domid);
    shared_store16(&c, e.shared + 4, (uint16_t)page_off);
    shared_store16(&c, e.shared + 6, (uint16_t)length);
    shared_store64(&c, e.shared + 8, frame);
    barrier_write();
    shared_store16(&c, e.shared, (uint16_t)(flags | GTF_sub_page));
    return (int)call_end(&c, 0);
}

static int grant_entry_set_transitive(domain *d, uint32_t ref, uint32_t domid,
                                      uint32_t trans_domid, uint32_t trans_ref, uint32_t flags)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;

    KERNEL_ENTER(d->m);
    if (d->grant_version != 2 || entry_find(d, ref, &e))
        return -EINVAL;
    shared_store16(&c, e.shared + 2, (uint16_t)domid);
    shared_store16(&c, e.shared + 4, (uint16_t)trans_domid);
    shared_store32(&c, e.shared + 8, trans_ref);
    barrier_write();
    shared_store16(&c, e.shared, (uint16_t)(flags | GTF_transitive));
    return (int)call_end(&c, 0);
}

static int64_t grant_entry_flags(domain *d, uint32_t ref)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;
    uint16_t flags;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref, &e))
        return -EINVAL;
    flags = shared_load16(&c, e.shared);
    return call_end(&c, flags);
}

/* GTF_reading and GTF_writing, wherever this version keeps them. */
static int64_t grant_entry_status(domain *d, uint32_t ref)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;
    uint16_t status;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref, &e))
        return -EINVAL;
    status = shared_load16(&c, e.status) & GTF_in_use;
    return call_end(&c, status);
}

/*
 * Version 1: flags to 0 only while neither reading nor writing is set. Version 2: flags to 0,
 * a barrier, then the status says whether somebody got in before. EBUSY if one did.
 */
static int grant_entry_revoke(domain *d, uint32_t ref)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;
    uint16_t flags;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref, &e))
        return -EINVAL;
    if (d->grant_version == 2) {
        shared_store16(&c, e.shared, 0);
        barrier_full();
        flags = shared_load16(&c, e.status) & GTF_in_use;
        barrier_read();
        return (int)call_end(&c, flags ? -EBUSY : 0);
    }
    flags = shared_load16(&c, e.shared);
    do {
        if (c.aborted)
            return KERNEL_E_ABORTED;
        if (flags & GTF_in_use)
            return -EBUSY;
    } while (!shared_cas16(&c, e.shared, &flags, 0));
    return (int)call_end(&c, 0);
}

/* Entry after entry: how many before the first that is in use, or all. */
static int64_t grant_entries_revoke(domain *d, const uint32_t *refs, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int done = grant_entry_revoke(d, refs[i]);

        if (done)
            return done == -EBUSY ? (int64_t)i : done;
    }
    return count;
}

/* To writable at any time, to read-only while nobody has it writable: EBUSY. */
static int grant_entry_readonly(domain *d, uint32_t ref, int readonly)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct grant_entry e;
    uint16_t flags;

    KERNEL_ENTER(d->m);
    if (entry_find(d, ref, &e))
        return -EINVAL;
    flags = shared_load16(&c, e.shared);
    do {
        if (c.aborted)
            return KERNEL_E_ABORTED;
        if (readonly && d->grant_version == 1 && (flags & GTF_writing))
            return -EBUSY;
    } while (!shared_cas16(&c, e.shared, &flags,
                           readonly ? flags | GTF_readonly : flags & ~GTF_readonly));
    if (!readonly || d->grant_version == 1)
        return (int)call_end(&c, 0);
    barrier_full();
    if (shared_load16(&c, e.status) & GTF_writing) {
        shared_fetch_and16(&c, e.shared, (uint16_t)~GTF_readonly);
        return (int)call_end(&c, -EBUSY);
    }
    return (int)call_end(&c, 0);
}

static uint32_t grant_pins(domain *d, uint32_t ref)
{
    struct grant_entry e;

    return entry_find(d, ref, &e) ? 0 : e.active->pin;
}

static int64_t grant_pinned_frame(domain *d, uint32_t ref)
{
    struct grant_entry e;

    return entry_find(d, ref, &e) || !e.active->pin ? -ENOENT : (int64_t)e.active->frame;
}

static uint32_t grant_pinned_refs(domain *d)
{
    uint32_t n = 0;

    for (uint32_t ref = 0; ref < grant_table_entries(d); ref++)
        n += !!d->active[ref / REFS_PER_CHUNK][ref % REFS_PER_CHUNK].pin;
    return n;
}
