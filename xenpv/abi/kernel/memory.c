/*
 * A domain's reservation and physmap: what memory_op does to them (xen/common/memory.c and
 * xen/arch/x86/mm/p2m.c as told by public/memory.h), and what is left when a domain dies.
 *
 * tot_pages counts what is promised, touched or not. A RAM frame leaves it with its last
 * reference, so a ballooned page that somebody maps still counts.
 */
#include "domain.h"

/* grant_table.c */
static int grant_table_limit(domain *d, uint32_t max_grant_frames);
static void grant_table_free(domain *d);

static domain *domain_new(machine *m, uint32_t domid, int is_32bit)
{
    domain *d = domid < NR_DOMIDS ? calloc(1, sizeof(*d)) : NULL;

    if (!d)
        return NULL;
    d->m = m;
    d->domid = (uint16_t)domid;
    d->is_32bit = !!is_32bit;
    d->unhooked = FRAME_NONE;
    m->domains[domid] = d;
    return d;
}

/*
 * XEN_DOMCTL_max_mem; below tot_pages it only keeps the domain from growing. The tables for
 * it are 8 KiB per MiB as xl reckons a paging pool, and enough for what is mapped.
 */
static int domain_set_max_pages(domain *d, uint32_t max_pages)
{
    KERNEL_ENTER(d->m);
    d->max_pages = max_pages;
    d->max_tables = P2M_TABLES_MIN + max_pages / 128;
    return 0;
}

static int domain_limits(domain *d, uint32_t max_pages, uint32_t max_grant_frames)
{
    KERNEL_ENTER(d->m);
    domain_set_max_pages(d, max_pages);
    return grant_table_limit(d, max_grant_frames);
}

static uint32_t domain_tot_pages(domain *d) { return d->tot_pages; }

static uint32_t domain_max_pages(domain *d) { return d->max_pages; }
static uint32_t domain_outstanding_pages(domain *d) { return d->outstanding_pages; }

/* XENMEM_maximum_gpfn of a translated domain: it never falls again. */
static uint32_t domain_max_gpfn(domain *d) { return d->max_gpfn; }

/* Whether `count` more pages may be given to it: max_pages, and what others claimed. */
static int domain_room(const domain *d, uint32_t count)
{
    const machine *m = d->m;

    if (d->relinquished || d->tot_pages > d->max_pages || count > d->max_pages - d->tot_pages)
        return 0;
    return count <= d->outstanding_pages ||
           (m->free_pages >= m->outstanding_claims &&
            count <= m->free_pages - m->outstanding_claims);
}

/* XENMEM_claim_pages: set aside what is missing to `pages` in all; 0 gives the claim up. */
static int domain_claim(domain *d, uint64_t pages)
{
    machine *m = d->m;

    KERNEL_ENTER(m);
    if (!pages) {
        m->outstanding_claims -= d->outstanding_pages;
        d->outstanding_pages = 0;
        return 0;
    }
    if (d->outstanding_pages || pages <= d->tot_pages || pages > d->max_pages)
        return -EINVAL;
    pages -= d->tot_pages;
    if (pages > m->free_pages - m->outstanding_claims)
        return -ENOMEM;
    d->outstanding_pages = (uint32_t)pages;
    m->outstanding_claims += (uint32_t)pages;
    return 0;
}

/* EPERM where a grant or foreign page is in [pfn, pfn + count), ENOMEM without tables. */
static int extent_check(domain *d, uint32_t pfn, uint32_t count)
{
    uint32_t last = (pfn + count - 1) / P2M_LEAF, tables = 0;

    for (uint32_t leaf = pfn / P2M_LEAF; leaf <= last; leaf++) {
        uint32_t *entries = leaf < d->nr_leaves ? d->leaves[leaf] : NULL;
        uint32_t from = leaf == pfn / P2M_LEAF ? pfn % P2M_LEAF : 0;
        uint32_t to = leaf == last ? (pfn + count - 1) % P2M_LEAF : P2M_LEAF - 1;

        tables += !entries;
        if (!entries || entries == leaf_untouched)
            continue;
        for (uint32_t i = from; i <= to; i++)
            if (p2m_is_foreign(entries[i]))
                return -EPERM;
    }
    return tables && d->nr_tables + tables > d->max_tables ? -ENOMEM : 0;
}

/* Untouched RAM from pfn on, as much as can be entered at once; 0: no memory for the table. */
static uint32_t leaf_populate(domain *d, uint32_t pfn, uint32_t count)
{
    uint32_t leaf = pfn / P2M_LEAF, at = pfn % P2M_LEAF, *entries;

    if (leaf >= d->nr_leaves && leaves_grow(d, leaf))
        return 0;
    if (d->leaves[leaf])
        return !p2m_exchange(d, pfn, LAZY_ENTRY, 0);
    if (count >= P2M_LEAF && !at) {
        d->leaves[leaf] = leaf_untouched;
        d->nr_tables++;
        return P2M_LEAF;
    }
    entries = leaf_own(d, leaf);
    if (!entries)
        return 0;
    if (count > P2M_LEAF - at)
        count = P2M_LEAF - at;
    for (uint32_t i = 0; i < count; i++)
        entries[at + i] = LAZY_ENTRY;
    entries[LEAF_USED] = count;
    return count;
}

/*
 * RAM for [pfn, pfn + count), all or nothing: ENOMEM, EINVAL, or EPERM, for which the domain
 * is crashed. RAM that was there is unhooked, not freed.
 */
static int extent_populate(domain *d, uint64_t gpfn, uint32_t count)
{
    uint32_t pfn = (uint32_t)gpfn, end = pfn + count;
    int error;

    if (gpfn >= P2M_PFNS || count > P2M_PFNS - gpfn)
        return -EINVAL;
    if (!domain_room(d, count))
        return -ENOMEM;
    error = extent_check(d, pfn, count);
    if (error)
        return error;
    for (uint32_t done; pfn < end; pfn += done) {
        done = leaf_populate(d, pfn, end - pfn);
        if (!done)
            return -ENOMEM;
        pages_promise(d, done);
    }
    if (end - 1 > d->max_gpfn)
        d->max_gpfn = end - 1;
    return 0;
}

/*
 * XENMEM_populate_physmap of n extents of 2^order pages: how many were done. *why is what
 * stopped it, -EPERM where Xen crashes the domain.
 */
static int64_t memory_populate(domain *d, const uint64_t *gpfns, uint32_t n, uint32_t order,
                               int *why)
{
    uint32_t done;

    KERNEL_ENTER(d->m);
    *why = 0;
    for (done = 0; done < n; done++) {
        *why = extent_populate(d, gpfns[done], 1u << order);
        if (*why)
            break;
    }
    return done;
}

/* Give RAM to [pfn, pfn + count); a short count where memory or max_pages ends. */
static int64_t domain_populate(domain *d, uint32_t pfn, uint32_t count)
{
    uint32_t free_pages = d->m->free_pages - d->m->outstanding_claims;
    uint32_t room = d->max_pages > d->tot_pages ? d->max_pages - d->tot_pages : 0;

    KERNEL_ENTER(d->m);
    if (count > room)
        count = room;
    if (count > free_pages && count > d->outstanding_pages)
        count = free_pages > d->outstanding_pages ? free_pages : d->outstanding_pages;
    return count && !extent_populate(d, pfn, count) ? count : 0;
}

/*
 * XENMEM_increase_reservation: pages at no pfn. With `mfns` they are taken from the arena
 * and each extent's first one is written there, as a PV guest is told.
 */
static int64_t memory_increase(domain *d, uint32_t n, uint32_t order, uint64_t *mfns)
{
    uint32_t done;

    KERNEL_ENTER(d->m);
    for (done = 0; done < n && domain_room(d, 1u << order); done++) {
        pages_promise(d, 1u << order);
        for (uint32_t i = 0; mfns && i < 1u << order; i++) {
            uint32_t frame = frame_alloc(d->m, d->domid, d->domid);

            d->m->frames[frame].link = d->unhooked;
            d->unhooked = frame;
            if (!i)
                mfns[done] = frame;
        }
    }
    return done;
}

/* guest_remove_page: RAM is freed, a page of Xen's unhooked; what is foreign stays. */
static int guest_remove_page(domain *d, uint64_t gpfn)
{
    uint32_t entry = gpfn < P2M_PFNS ? p2m_entry(d, (uint32_t)gpfn) : 0;

    if (!entry)
        return -ENOENT;
    if (p2m_is_foreign(entry))
        return -ENXIO;
    return p2m_exchange(d, (uint32_t)gpfn, 0, 1);
}

/*
 * XENMEM_decrease_reservation of n extents: how many were done. It stops at the first page
 * that cannot go; those before it in the same extent are gone.
 */
static int64_t memory_decrease(domain *d, const uint64_t *gpfns, uint32_t n, uint32_t order)
{
    KERNEL_ENTER(d->m);
    for (uint32_t done = 0; done < n; done++)
        for (uint32_t i = 0; i < 1u << order; i++)
            if (guest_remove_page(d, gpfns[done] + i))
                return done;
    return n;
}

/* A frame of Xen's own (shared_info, grant table): counted to no domain. */
static int64_t domain_alloc_xen_frame(domain *d)
{
    uint32_t frame;

    KERNEL_ENTER(d->m);
    if (d->m->free_pages <= d->m->outstanding_claims)
        return -ENOMEM;
    frame = frame_alloc(d->m, OWNER_XEN, d->domid);
    if (frame == FRAME_NONE)
        return -ENOMEM;
    d->m->free_pages--;
    return frame;
}

static void xen_frame_put(machine *m, uint32_t frame) { frame_put(m, frame); }

static int domain_unmap(domain *d, uint32_t pfn)
{
    KERNEL_ENTER(d->m);
    return p2m_clear(d, pfn);
}

/* Whether something may be put at a pfn: EINVAL, ENXIO at another domain's RAM. */
static int physmap_check(const domain *d, uint64_t gpfn)
{
    uint32_t old;

    if (gpfn >= P2M_PFNS)
        return -EINVAL;
    old = p2m_entry(d, (uint32_t)gpfn);
    if (p2m_is_foreign(old) && d->m->frames[old & P2M_FRAME_MASK].owner != OWNER_XEN)
        return -ENXIO;
    return 0;
}

/*
 * Put `entry` at a pfn as xenmem_add_to_physmap_one does: RAM that is there is freed, a page
 * of Xen's, whoever's, only unhooked. ENOMEM: no tables.
 */
static int physmap_add(domain *d, uint64_t gpfn, uint32_t entry)
{
    int error = physmap_check(d, gpfn);

    return error ? error : p2m_exchange(d, (uint32_t)gpfn, entry, 1);
}

/* XENMAPSPACE_shared_info, _grant_table: a frame of Xen's is at one pfn at a time. */
static int64_t domain_add_xen_frame(domain *d, uint64_t gpfn, uint32_t frame)
{
    uint32_t old;
    int error;

    KERNEL_ENTER(d->m);
    if (frame >= d->m->high_water || !d->m->frames[frame].refs)
        return -EINVAL;
    frame_get(d->m, frame);
    error = physmap_add(d, gpfn, ((uint32_t)P2M_XEN << P2M_TYPE_SHIFT) | frame);
    if (error) {
        frame_put(d->m, frame);
        return error;
    }
    old = d->m->frames[frame].link;
    if (old != FRAME_NONE)
        p2m_exchange(d, old, 0, 0);
    d->m->frames[frame].link = (uint32_t)gpfn;
    return 0;
}

static int64_t domain_shared_info_frame(domain *d)
{
    return d->shared_info ? (d->shared_info - d->m->base) >> FRAME_SHIFT : -EINVAL;
}

/* XENMAPSPACE_gmfn: move a page of RAM. EACCES unless it is RAM, EINVAL out of range. */
static int physmap_move(domain *d, uint64_t from, uint64_t to)
{
    uint32_t entry, type;
    int error;

    KERNEL_ENTER(d->m);
    entry = from < P2M_PFNS ? p2m_entry(d, (uint32_t)from) : 0;
    type = entry >> P2M_TYPE_SHIFT;
    if (type != P2M_RAM && type != P2M_LAZY)
        return -EACCES;
    if (from == to)
        return 0;
    if (!leaf_own(d, (uint32_t)from / P2M_LEAF))
        return -ENOMEM;
    error = physmap_add(d, to, entry);
    return error ? error : p2m_set(d, (uint32_t)from, 0);
}

/*
 * A foreign page: `owner`'s page at `gfn` for the caller's physmap; EINVAL where it has no
 * RAM. Not a grant: no entry of its table says so, it is a privilege (XSM) of the mapper.
 */
static int physmap_add_foreign(domain *d, uint64_t gpfn, domain *owner, uint64_t gfn)
{
    uint32_t entry, frame;
    int error;

    KERNEL_ENTER(d->m);
    entry = gfn < P2M_PFNS ? p2m_entry(owner, (uint32_t)gfn) : 0;
    if (!entry || p2m_is_foreign(entry))
        return -EINVAL;
    error = physmap_check(d, gpfn);
    if (error)
        return error;
    entry = p2m_touch(owner, (uint32_t)gfn);
    if (!entry)
        return -ENOMEM;
    frame = entry & P2M_FRAME_MASK;
    frame_get(d->m, frame);
    error = physmap_add(d, gpfn, ((uint32_t)P2M_FOREIGN << P2M_TYPE_SHIFT) | frame);
    if (error)
        frame_put(d->m, frame);
    else
        owner->foreign_special += d->m->frames[frame].owner == OWNER_XEN;
    return error;
}

/*
 * XENMEM_acquire_resource: a frame that Xen made for another domain, as a foreign page. RAM
 * there is unhooked; EPERM at a grant or foreign page, for which the caller is crashed.
 */
static int physmap_acquire(domain *d, uint64_t gpfn, uint32_t frame)
{
    int error;

    KERNEL_ENTER(d->m);
    if (gpfn >= P2M_PFNS)
        return -EINVAL;
    error = p2m_place(d, (uint32_t)gpfn, frame, P2M_FOREIGN);
    if (!error)
        d->m->domains[d->m->frames[frame].domid]->foreign_special++;
    return error == -EBUSY ? -EPERM : error;
}

/* XENMEM_remove_from_physmap: whatever is there is unhooked; RAM stays in tot_pages. */
static int physmap_remove(domain *d, uint64_t gpfn)
{
    KERNEL_ENTER(d->m);
    if (gpfn >= P2M_PFNS || !p2m_entry(d, (uint32_t)gpfn))
        return -ENOENT;
    return p2m_exchange(d, (uint32_t)gpfn, 0, 0);
}

/*
 * The domain's own references go: RAM and whatever it had mapped (relinquish_memory of
 * Xen). Frames that others still hold stay, and count as domain_shared_frames. Its grant
 * table and shared_info stay too, for the releases that are still to come.
 */
static void domain_relinquish(domain *d)
{
    domain_claim(d, 0);
    vcpu_unregister_all(d);
    d->m->free_pages += d->tot_pages - d->nr_frames;
    d->tot_pages = d->nr_frames;
    while (d->nr_owned) {
        uint32_t leaf = d->owned[--d->nr_owned], *entries = d->leaves[leaf];

        for (uint32_t i = 0; entries[LEAF_USED]; i++) {
            entries[LEAF_USED] -= entries[i] != 0;
            if (entries[i] != LAZY_ENTRY)
                p2m_dispose(d, leaf * P2M_LEAF + i, entries[i], 1);
        }
        free(entries);
    }
    while (d->unhooked != FRAME_NONE) {
        uint32_t frame = d->unhooked;

        d->unhooked = d->m->frames[frame].link;
        frame_put(d->m, frame);
    }
    free(d->leaves);
    free(d->owned);
    d->leaves = NULL;
    d->owned = NULL;
    d->nr_leaves = d->nr_tables = d->room_owned = 0;
    d->relinquished = 1;
    d->generation++;
}

/* Frames of a relinquished domain that others hold: by grants, foreign or resource maps. */
static uint32_t domain_shared_frames(domain *d) { return d->tot_pages + d->foreign_special; }

/*
 * Give back all memory. What is left is a shell in which nothing is mapped: handles on its
 * rings answer EFAULT, and the last reference frees it.
 */
static void domain_release(domain *d)
{
    evtchn_release(d);
    domain_relinquish(d);
    vcpu_release(d);
    grant_table_free(d);
    if (d->shared_info)
        xen_frame_put(d->m, (uint32_t)((d->shared_info - d->m->base) >> FRAME_SHIFT));
    d->shared_info = NULL;
    memset(d->vcpu_info, 0, sizeof(d->vcpu_info));
    d->generation++;
    if (d->m->domains[d->domid] == d)
        d->m->domains[d->domid] = NULL;
}

static void domain_free(domain *d)
{
    evtchn_free_ports(d);
    free(d);
}
