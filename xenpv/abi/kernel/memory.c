/*
 * Machine memory: frames of one arena, and each domain's pfn -> mfn table.
 *
 * A reservation costs nothing until it is touched: an extent says which pfns are RAM, a
 * frame is taken at the first access. Freed frames are scrubbed, so a fresh page reads
 * zero as in a release build of Xen. p2m entries are u32: type in the top three bits.
 */
#include "domain.h"
#include "log.h"

static void machine_delete(machine *m)
{
    machine_unlog(m);
    free(m->frames);
    free(m->free_list);
    free(m->domains);
    free(m);
}

static machine *machine_new(void *base, uint32_t nr_frames)
{
    machine *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->base = base;
    m->nr_frames = m->free_pages = nr_frames;
    /* Large callocs are fresh zero mappings: no page of these is touched before its frame is. */
    m->frames = calloc(nr_frames, sizeof(*m->frames));
    m->free_list = calloc(nr_frames, sizeof(*m->free_list));
    m->domains = calloc(NR_DOMIDS, sizeof(*m->domains));
    if (!m->frames || !m->free_list || !m->domains) {
        machine_delete(m);
        return NULL;
    }
    return m;
}

static void machine_forked(machine *m)
{
    m->forked = 1;
}

/*
 * Back to a fresh machine, so that the next platform hands out the same frame numbers.
 * Frames still referenced are scrubbed all the same; says how many there were.
 */
static uint32_t machine_reset(machine *m)
{
    uint32_t leaked = 0;

    for (uint32_t frame = 0; frame < m->high_water; frame++) {
        if (!m->frames[frame].refs)
            continue;
        memset(m->base + ((size_t)frame << FRAME_SHIFT), 0, FRAME_SIZE);
        m->frames[frame].refs = 0;
        leaked++;
    }
    m->nr_free_list = m->high_water = 0;
    m->free_pages = m->nr_frames;
    machine_unlog(m);
    m->hook = NULL;
    return leaked;
}

static int machine_hook(machine *m, access_hook hook, void *context)
{
    KERNEL_ENTER(m);
    if (m->log) {
        log_chain(m->log, hook, context);
        return 0;
    }
    m->hook = hook;
    m->hook_context = context;
    return 0;
}

static uint32_t machine_free_pages(machine *m) { return m->free_pages; }
static uint32_t machine_used_frames(machine *m) { return m->high_water - m->nr_free_list; }
static uint32_t machine_high_water(machine *m) { return m->high_water; }

static inline uint8_t *frame_address(machine *m, uint32_t frame)
{
    return m->base + ((size_t)frame << FRAME_SHIFT);
}

static uint32_t frame_alloc(machine *m, uint16_t owner)
{
    uint32_t frame;

    if (m->nr_free_list)
        frame = m->free_list[--m->nr_free_list];
    else if (m->high_water < m->nr_frames)
        frame = m->high_water++;
    else
        return FRAME_NONE;
    m->frames[frame].refs = 1;
    m->frames[frame].owner = owner;
    return frame;
}

/*
 * Drop a reference. The last one scrubs and frees the frame, and only then it leaves its
 * owner's tot_pages (put_page and free_domheap_pages of Xen).
 */
static void frame_put(machine *m, uint32_t frame)
{
    uint16_t owner = m->frames[frame].owner;

    if (--m->frames[frame].refs)
        return;
    if (owner != OWNER_XEN) {
        m->domains[owner]->nr_frames--;
        m->domains[owner]->tot_pages--;
    }
    m->free_pages++;
    memset(frame_address(m, frame), 0, FRAME_SIZE);
    m->free_list[m->nr_free_list++] = frame;
}

static uint32_t frame_refs(machine *m, uint32_t frame)
{
    return frame < m->nr_frames ? m->frames[frame].refs : 0;
}

static int frame_owner(machine *m, uint32_t frame)
{
    return frame < m->high_water && m->frames[frame].refs ? m->frames[frame].owner : -ENOENT;
}

static domain *domain_new(machine *m, uint32_t domid, int is_32bit)
{
    domain *d = domid < NR_DOMIDS ? calloc(1, sizeof(*d)) : NULL;

    if (!d)
        return NULL;
    d->m = m;
    d->domid = (uint16_t)domid;
    d->is_32bit = !!is_32bit;
    m->domains[domid] = d;
    return d;
}

static int domain_limits(domain *d, uint32_t max_pages, uint32_t max_grant_frames)
{
    uint32_t *frames;
    struct active_entry *active;

    KERNEL_ENTER(d->m);
    d->max_pages = max_pages;
    if (max_grant_frames <= d->max_grant_frames)
        return 0;
    frames = realloc(d->grant_frames, max_grant_frames * sizeof(*frames));
    if (!frames)
        return -ENOMEM;
    d->grant_frames = frames;
    active = calloc((size_t)max_grant_frames * (FRAME_SIZE / 8), sizeof(*active));
    if (!active)
        return -ENOMEM;
    if (d->active)
        memcpy(active, d->active,
               (size_t)d->nr_grant_frames * (FRAME_SIZE / 8) * sizeof(*active));
    free(d->active);
    d->active = active;
    d->max_grant_frames = max_grant_frames;
    return 0;
}

static uint32_t domain_tot_pages(domain *d) { return d->tot_pages; }

static uint32_t *p2m_slot(domain *d, uint32_t pfn, int create)
{
    uint32_t leaf = pfn / P2M_LEAF;

    if (leaf >= d->nr_leaves) {
        uint32_t **leaves, nr;

        if (!create || pfn >= (1u << 28))
            return NULL;
        nr = leaf + 1 < 2 * d->nr_leaves ? 2 * d->nr_leaves : leaf + 1;
        leaves = realloc(d->leaves, nr * sizeof(*leaves));
        if (!leaves)
            return NULL;
        memset(leaves + d->nr_leaves, 0, (nr - d->nr_leaves) * sizeof(*leaves));
        d->leaves = leaves;
        d->nr_leaves = nr;
    }
    if (!d->leaves[leaf]) {
        if (!create)
            return NULL;
        d->leaves[leaf] = calloc(P2M_LEAF, sizeof(uint32_t));
        if (!d->leaves[leaf])
            return NULL;
    }
    return &d->leaves[leaf][pfn % P2M_LEAF];
}

static int p2m_in_extent(const domain *d, uint32_t pfn)
{
    for (uint32_t i = 0; i < d->nr_extents; i++)
        if (pfn >= d->extents[i].start && pfn < d->extents[i].end)
            return 1;
    return 0;
}

/* The entry of a pfn, RAM taken from the arena at the first touch; 0 if there is none. */
static uint32_t p2m_touch(domain *d, uint32_t pfn)
{
    uint32_t *slot = p2m_slot(d, pfn, 0);
    uint32_t frame;

    if (slot && *slot)
        return (*slot >> P2M_TYPE_SHIFT) == P2M_HOLE ? 0 : *slot;
    if (!p2m_in_extent(d, pfn))
        return 0;
    slot = p2m_slot(d, pfn, 1);
    if (!slot)
        return 0;
    frame = frame_alloc(d->m, d->domid);
    if (frame == FRAME_NONE)
        return 0;
    d->nr_frames++;
    *slot = (P2M_RAM << P2M_TYPE_SHIFT) | frame;
    return *slot;
}

static inline uint8_t *page_address(domain *d, uint32_t pfn, int write)
{
    uint32_t leaf = pfn / P2M_LEAF, entry = 0;

    if (leaf < d->nr_leaves && d->leaves[leaf])
        entry = d->leaves[leaf][pfn % P2M_LEAF];
    if (__builtin_expect((entry >> P2M_TYPE_SHIFT) != P2M_RAM, 0)) {
        entry = p2m_touch(d, pfn);
        if (!entry || (write && (entry >> P2M_TYPE_SHIFT) == P2M_GRANT_RO))
            return NULL;
    }
    return frame_address(d->m, entry & P2M_FRAME_MASK);
}

static int64_t p2m_lookup(domain *d, uint32_t pfn, int populate)
{
    uint32_t *slot, entry;

    KERNEL_ENTER(d->m);
    if (populate) {
        entry = p2m_touch(d, pfn);
    } else {
        slot = p2m_slot(d, pfn, 0);
        entry = slot ? *slot : 0;
    }
    if (!entry || (entry >> P2M_TYPE_SHIFT) == P2M_HOLE)
        return -ENOENT;
    return entry & P2M_FRAME_MASK;
}

static int p2m_type(domain *d, uint32_t pfn)
{
    uint32_t *slot = p2m_slot(d, pfn, 0);

    if (slot && *slot)
        return (int)(*slot >> P2M_TYPE_SHIFT);
    return p2m_in_extent(d, pfn) ? P2M_RAM : P2M_NONE;
}

/* Give RAM to [pfn, pfn + count); a short count where memory or max_pages ends. */
static int64_t domain_populate(domain *d, uint32_t pfn, uint32_t count)
{
    struct extent *extents;
    uint32_t room = d->max_pages > d->tot_pages ? d->max_pages - d->tot_pages : 0;

    KERNEL_ENTER(d->m);
    if (count > room)
        count = room;
    if (count > d->m->free_pages)
        count = d->m->free_pages;
    if (!count)
        return 0;
    extents = realloc(d->extents, (d->nr_extents + 1) * sizeof(*extents));
    if (!extents)
        return 0;
    d->extents = extents;
    extents[d->nr_extents].start = pfn;
    extents[d->nr_extents].end = pfn + count;
    d->nr_extents++;
    d->tot_pages += count;
    d->m->free_pages -= count;
    return count;
}

/* Take back a page that was never touched, so that no frame stands for it. */
static void page_unpromise(domain *d)
{
    d->tot_pages--;
    d->m->free_pages++;
}

/* decrease_reservation: stops at a pfn without RAM of its own. */
static int64_t domain_depopulate(domain *d, uint32_t pfn, uint32_t count)
{
    uint32_t done;

    KERNEL_ENTER(d->m);
    for (done = 0; done < count; done++) {
        uint32_t *slot;

        if (p2m_type(d, pfn + done) != P2M_RAM)
            break;
        slot = p2m_slot(d, pfn + done, 1);
        if (!slot)
            break;
        if (*slot)
            frame_put(d->m, *slot & P2M_FRAME_MASK);
        else
            page_unpromise(d);
        *slot = P2M_HOLE << P2M_TYPE_SHIFT;
        d->generation++;
    }
    return done;
}

/* A frame of Xen's own (shared_info, grant table): counted to no domain. */
static int64_t domain_alloc_xen_frame(domain *d)
{
    uint32_t frame;

    KERNEL_ENTER(d->m);
    if (!d->m->free_pages)
        return -ENOMEM;
    frame = frame_alloc(d->m, OWNER_XEN);
    if (frame == FRAME_NONE)
        return -ENOMEM;
    d->m->free_pages--;
    return frame;
}

static void xen_frame_put(machine *m, uint32_t frame) { frame_put(m, frame); }

/*
 * A reference on a page of the domain's own RAM, so that it outlives decrease_reservation:
 * vcpu_info and FIFO pages (get_page_and_type of Xen). NULL if there is no such RAM. Every
 * hold is dropped, by the address it gave, before domain_relinquish.
 */
static uint8_t *page_hold(domain *d, uint32_t pfn)
{
    uint32_t entry = p2m_touch(d, pfn);

    if ((entry >> P2M_TYPE_SHIFT) != P2M_RAM)
        return NULL;
    d->m->frames[entry & P2M_FRAME_MASK].refs++;
    return frame_address(d->m, entry & P2M_FRAME_MASK);
}

static void page_drop(domain *d, uint8_t *page)
{
    frame_put(d->m, (uint32_t)((page - d->m->base) >> FRAME_SHIFT));
}

/* Drop what a pfn holds, whatever it is; the entry becomes a hole. */
static int p2m_clear(domain *d, uint32_t pfn)
{
    uint32_t *slot = p2m_slot(d, pfn, 0);
    uint32_t type;

    if (!slot || !*slot)
        return -ENOENT;
    type = *slot >> P2M_TYPE_SHIFT;
    if (type == P2M_HOLE)
        return -ENOENT;
    frame_put(d->m, *slot & P2M_FRAME_MASK);
    *slot = p2m_in_extent(d, pfn) ? P2M_HOLE << P2M_TYPE_SHIFT : 0;
    d->generation++;
    return 0;
}

static int domain_unmap(domain *d, uint32_t pfn)
{
    KERNEL_ENTER(d->m);
    return p2m_clear(d, pfn);
}

/* Put an already referenced frame at a pfn; RAM that was there is freed. */
static int p2m_place(domain *d, uint32_t pfn, uint32_t frame, uint32_t type)
{
    uint32_t *slot;

    if (p2m_type(d, pfn) == P2M_RAM && domain_depopulate(d, pfn, 1) != 1)
        return -ENOMEM;
    slot = p2m_slot(d, pfn, 1);
    if (!slot)
        return -ENOMEM;
    if (*slot && (*slot >> P2M_TYPE_SHIFT) != P2M_HOLE)
        return -EBUSY;
    *slot = (type << P2M_TYPE_SHIFT) | frame;
    d->m->frames[frame].refs++;
    d->generation++;
    return 0;
}

static int64_t domain_add_xen_frame(domain *d, uint32_t pfn, uint32_t frame)
{
    KERNEL_ENTER(d->m);
    if (frame >= d->m->high_water || !d->m->frames[frame].refs)
        return -EINVAL;
    return p2m_place(d, pfn, frame, P2M_XEN);
}

/*
 * The domain's own references go: RAM and whatever it had mapped (relinquish_memory of
 * Xen). Frames that others still hold stay, and count as domain_shared_frames. Its grant
 * table and shared_info stay too, for the releases that are still to come.
 */
static void domain_relinquish(domain *d)
{
    d->m->free_pages += d->tot_pages - d->nr_frames;
    d->tot_pages = d->nr_frames;
    for (uint32_t leaf = 0; leaf < d->nr_leaves; leaf++) {
        if (!d->leaves[leaf])
            continue;
        for (uint32_t i = 0; i < P2M_LEAF; i++) {
            uint32_t entry = d->leaves[leaf][i], type = entry >> P2M_TYPE_SHIFT;

            if (entry && type != P2M_HOLE)
                frame_put(d->m, entry & P2M_FRAME_MASK);
        }
        free(d->leaves[leaf]);
    }
    free(d->leaves);
    free(d->extents);
    d->leaves = NULL;
    d->extents = NULL;
    d->nr_leaves = d->nr_extents = 0;
    d->max_pages = 0;
    d->generation++;
}

/* Frames of a relinquished domain that others hold: by grant maps or foreign maps. */
static uint32_t domain_shared_frames(domain *d) { return d->tot_pages; }

/*
 * Give back all memory. What is left is a shell in which nothing is mapped: handles on its
 * rings answer EFAULT, and the last reference frees it.
 */
static void domain_release(domain *d)
{
    domain_relinquish(d);
    for (uint32_t i = 0; i < d->nr_grant_frames; i++)
        xen_frame_put(d->m, d->grant_frames[i]);
    if (d->shared_info)
        xen_frame_put(d->m, (uint32_t)((d->shared_info - d->m->base) >> FRAME_SHIFT));
    free(d->grant_frames);
    free(d->active);
    d->grant_frames = NULL;
    d->active = NULL;
    d->shared_info = NULL;
    memset(d->vcpu_info, 0, sizeof(d->vcpu_info));
    d->nr_grant_frames = d->max_grant_frames = 0;
    d->generation++;
    if (d->m->domains[d->domid] == d)
        d->m->domains[d->domid] = NULL;
}

static void domain_free(domain *d) { free(d); }

static int64_t page_copy(domain *d, uint32_t pfn, uint32_t offset, uint8_t *private, uint32_t size,
                         int write)
{
    struct call c = call_begin(d->m, d->domid, 0);

    KERNEL_ENTER(d->m);
    pfn += offset >> FRAME_SHIFT;
    offset &= FRAME_SIZE - 1;
    for (uint32_t done = 0; done < size;) {
        uint32_t n = FRAME_SIZE - offset < size - done ? FRAME_SIZE - offset : size - done;
        uint8_t *page = page_address(d, pfn, write);

        if (!page)
            return -EFAULT;
        if (write)
            shared_copy_in(&c, page + offset, private + done, n);
        else
            shared_copy_out(&c, private + done, page + offset, n);
        done += n;
        offset = 0;
        pfn++;
    }
    return call_end(&c, size);
}

static int64_t page_read(domain *d, uint32_t pfn, uint32_t offset, void *out, uint32_t size)
{
    return page_copy(d, pfn, offset, out, size, 0);
}

static int64_t page_write(domain *d, uint32_t pfn, uint32_t offset, const void *data, uint32_t size)
{
    return page_copy(d, pfn, offset, (uint8_t *)data, size, 1);
}

static int64_t page_load32(domain *d, uint32_t pfn, uint32_t offset)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *page;
    uint32_t value;

    KERNEL_ENTER(d->m);
    page = page_address(d, pfn, 0);
    if (!page || offset > FRAME_SIZE - 4 || offset % 4)
        return -EFAULT;
    value = shared_load32(&c, page + offset);
    return call_end(&c, value);
}

static int page_store32(domain *d, uint32_t pfn, uint32_t offset, uint32_t value)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *page;

    KERNEL_ENTER(d->m);
    page = page_address(d, pfn, 1);
    if (!page || offset > FRAME_SIZE - 4 || offset % 4)
        return -EFAULT;
    shared_store32(&c, page + offset, value);
    return (int)call_end(&c, 0);
}

static int64_t page_list(domain *d, const uint32_t *list, uint32_t n, uint8_t *private,
                         uint32_t size, int write)
{
    uint32_t done = 0;

    for (uint32_t i = 0; i < n; i++, list += 3) {
        int64_t result;

        if (list[2] > size - done)
            return -EINVAL;
        result = page_copy(d, list[0], list[1], private + done, list[2], write);
        if (result < 0)
            return result;
        done += list[2];
    }
    return done;
}

static int64_t page_gather(domain *d, const uint32_t *list, uint32_t n, void *out, uint32_t size)
{
    return page_list(d, list, n, out, size, 0);
}

static int64_t page_scatter(domain *d, const uint32_t *list, uint32_t n, const void *data,
                            uint32_t size)
{
    return page_list(d, list, n, (uint8_t *)data, size, 1);
}
