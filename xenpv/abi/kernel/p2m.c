/*
 * Each domain's pfn -> frame table. Entries are u32: the type in the top three bits.
 *
 * A reservation costs nothing until it is touched: an entry of type P2M_LAZY says that the
 * pfn is RAM, its frame is taken at the first access. 512 such pages side by side share one
 * table with every domain. What a guest can make us allocate is bounded: max_tables leaves
 * of 2 KiB (the part of Xen's paging pool), and 4 MiB of root for the last pfn.
 */
#include "domain.h"

/* Behind the entries of a leaf: how many are in use, and its place in d->owned. */
#define LEAF_USED P2M_LEAF
#define LEAF_PLACE (P2M_LEAF + 1)
#define LEAF_SIZE ((P2M_LEAF + 2) * sizeof(uint32_t))
#define LAZY_ENTRY ((uint32_t)P2M_LAZY << P2M_TYPE_SHIFT)

/* Stands for every leaf of 512 untouched pages; never written. */
static uint32_t leaf_untouched[P2M_LEAF + 2] = {
    [0 ... P2M_LEAF - 1] = LAZY_ENTRY,
    [LEAF_USED] = P2M_LEAF,
};

static inline uint32_t p2m_entry(const domain *d, uint32_t pfn)
{
    uint32_t leaf = pfn / P2M_LEAF;

    return leaf < d->nr_leaves && d->leaves[leaf] ? d->leaves[leaf][pfn % P2M_LEAF] : 0;
}

static int leaves_grow(domain *d, uint32_t leaf)
{
    uint32_t nr = leaf + 1 < 2 * d->nr_leaves ? 2 * d->nr_leaves : leaf + 1;
    uint32_t **leaves = calloc(nr, sizeof(*leaves));

    if (!leaves)
        return -ENOMEM;
    if (d->leaves)
        memcpy(leaves, d->leaves, d->nr_leaves * sizeof(*leaves));
    free(d->leaves);
    d->leaves = leaves;
    d->nr_leaves = nr;
    return 0;
}

/* The leaf as a table that may be written; NULL beyond P2M_PFNS, max_tables or memory. */
static uint32_t *leaf_own(domain *d, uint32_t leaf)
{
    uint32_t *old, *entries;

    if (leaf >= P2M_PFNS / P2M_LEAF || (leaf >= d->nr_leaves && leaves_grow(d, leaf)))
        return NULL;
    old = d->leaves[leaf];
    if (old && old != leaf_untouched)
        return old;
    if (!old && d->nr_tables >= d->max_tables)
        return NULL;
    if (d->nr_owned == d->room_owned) {
        uint32_t room = d->room_owned ? 2 * d->room_owned : 16;
        uint32_t *owned = realloc(d->owned, room * sizeof(*owned));

        if (!owned)
            return NULL;
        d->owned = owned;
        d->room_owned = room;
    }
    entries = old ? malloc(LEAF_SIZE) : calloc(1, LEAF_SIZE);
    if (!entries)
        return NULL;
    if (old)
        memcpy(entries, old, LEAF_SIZE);
    entries[LEAF_PLACE] = d->nr_owned;
    d->owned[d->nr_owned++] = leaf;
    d->nr_tables += !old;
    d->leaves[leaf] = entries;
    return entries;
}

static void leaf_free(domain *d, uint32_t leaf)
{
    uint32_t *entries = d->leaves[leaf], last = d->owned[--d->nr_owned];

    d->owned[entries[LEAF_PLACE]] = last;
    d->leaves[last][LEAF_PLACE] = entries[LEAF_PLACE];
    d->leaves[leaf] = NULL;
    d->nr_tables--;
    free(entries);
}

static int p2m_set(domain *d, uint32_t pfn, uint32_t entry)
{
    uint32_t *entries = leaf_own(d, pfn / P2M_LEAF), *slot;

    if (!entries)
        return -ENOMEM;
    slot = &entries[pfn % P2M_LEAF];
    /* No handle holds the address of a page that was never touched. */
    d->generation += *slot && *slot != LAZY_ENTRY;
    entries[LEAF_USED] += (entry != 0) - (*slot != 0);
    *slot = entry;
    if (!entries[LEAF_USED])
        leaf_free(d, pfn / P2M_LEAF);
    if (entry && pfn > d->max_gpfn)
        d->max_gpfn = pfn;
    return 0;
}

/* The entry of a pfn, RAM taken from the arena at the first touch; 0 if there is none. */
static uint32_t p2m_touch(domain *d, uint32_t pfn)
{
    uint32_t entry = p2m_entry(d, pfn), frame;
    uint32_t *entries;

    if (entry != LAZY_ENTRY)
        return entry;
    entries = leaf_own(d, pfn / P2M_LEAF);
    if (!entries)
        return 0;
    frame = frame_alloc(d->m, d->domid, d->domid);
    if (frame == FRAME_NONE)
        return 0;
    entry = ((uint32_t)P2M_RAM << P2M_TYPE_SHIFT) | frame;
    entries[pfn % P2M_LEAF] = entry;
    return entry;
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

/* The frame of a pfn; `populate`: of RAM that was never touched, too. */
static int64_t p2m_lookup(domain *d, uint32_t pfn, int populate)
{
    uint32_t entry;

    KERNEL_ENTER(d->m);
    entry = populate ? p2m_touch(d, pfn) : p2m_entry(d, pfn);
    if (!entry || entry == LAZY_ENTRY)
        return -ENOENT;
    return entry & P2M_FRAME_MASK;
}

/* The first index from `from` on whose pfn has a frame, `count` if none has. */
static int64_t p2m_next_touched(domain *d, const uint32_t *pfns, uint32_t from, uint32_t count)
{
    KERNEL_ENTER(d->m);
    while (from < count && p2m_lookup(d, pfns[from], 0) < 0)
        from++;
    return from;
}

static int p2m_type(domain *d, uint32_t pfn)
{
    uint32_t type = p2m_entry(d, pfn) >> P2M_TYPE_SHIFT;

    return type == P2M_LAZY ? P2M_RAM : (int)type;
}

/* How many of the `count` pfns from `pfn` on have the type of the first. */
static uint32_t p2m_run(domain *d, uint32_t pfn, uint32_t count)
{
    uint32_t n = 1;

    while (n < count && p2m_type(d, pfn + n) == p2m_type(d, pfn))
        n++;
    return n;
}

/* Up to `max` pfns from `from` on, ascending, of RAM that has a frame. */
static uint32_t p2m_touched(domain *d, uint32_t from, uint32_t *pfns, uint32_t max)
{
    uint32_t n = 0;

    for (uint32_t leaf = from / P2M_LEAF; leaf < d->nr_leaves && n < max; leaf++) {
        const uint32_t *entries = d->leaves[leaf];

        if (!entries || entries == leaf_untouched)
            continue;
        for (uint32_t i = leaf == from / P2M_LEAF ? from % P2M_LEAF : 0; i < P2M_LEAF; i++) {
            if (n == max)
                break;
            if (entries[i] >> P2M_TYPE_SHIFT == P2M_RAM)
                pfns[n++] = leaf * P2M_LEAF + i;
        }
    }
    return n;
}

/* Leaf tables in use: shared and own. */
static uint32_t p2m_tables(domain *d) { return d->nr_tables; }

/* Promise RAM that no frame stands for yet; the caller looked at domain_room. */
static void pages_promise(domain *d, uint32_t count)
{
    uint32_t claimed = count < d->outstanding_pages ? count : d->outstanding_pages;

    d->tot_pages += count;
    d->m->free_pages -= count;
    d->outstanding_pages -= claimed;
    d->m->outstanding_claims -= claimed;
}

static void page_unpromise(domain *d)
{
    d->tot_pages--;
    d->m->free_pages++;
}

/* Keep a frame of the domain's RAM that is at no pfn, until the domain dies. */
static void frame_unhook(domain *d, uint32_t frame)
{
    d->m->frames[frame].link = d->unhooked;
    d->unhooked = frame;
}

/*
 * Let go of what an entry held. RAM is freed, or only unhooked: then it is at no pfn, but
 * stays the domain's and in its tot_pages until it dies.
 */
static void p2m_dispose(domain *d, uint32_t pfn, uint32_t entry, int free_ram)
{
    uint32_t frame = entry & P2M_FRAME_MASK, type = entry >> P2M_TYPE_SHIFT;
    struct frame_info *info = &d->m->frames[frame];

    switch (type) {
    case P2M_NONE:
        return;
    case P2M_LAZY:
        if (free_ram)
            page_unpromise(d);
        return;
    case P2M_RAM:
        if (!free_ram) {
            frame_unhook(d, frame);
            return;
        }
        break;
    case P2M_XEN:
        if (info->link == pfn)
            info->link = FRAME_NONE;
        break;
    case P2M_FOREIGN:
        if (info->owner == OWNER_XEN) {
            d->m->domains[info->domid]->foreign_special--;
            domain_drained(d->m->domains[info->domid]);
        }
        break;
    }
    frame_put(d->m, frame);
}

static int p2m_exchange(domain *d, uint32_t pfn, uint32_t entry, int free_ram)
{
    uint32_t old = p2m_entry(d, pfn);
    int error = p2m_set(d, pfn, entry);

    if (!error)
        p2m_dispose(d, pfn, old, free_ram);
    return error;
}

/* Drop what a pfn holds, whatever it is; RAM is freed with its last reference. */
static int p2m_clear(domain *d, uint32_t pfn)
{
    return p2m_entry(d, pfn) ? p2m_exchange(d, pfn, 0, 1) : -ENOENT;
}

/* Only a grant or a foreign page of a domain's RAM stands in the way of a map. */
static int p2m_is_foreign(uint32_t entry)
{
    uint32_t type = entry >> P2M_TYPE_SHIFT;

    return type == P2M_GRANT_RW || type == P2M_GRANT_RO || type == P2M_FOREIGN;
}

/*
 * A reference on `frame` for a new entry at a pfn. RAM or a page of Xen's there is unhooked;
 * EBUSY where a grant or a foreign page is mapped: Xen crashes the mapper for that.
 */
static int p2m_place(domain *d, uint32_t pfn, uint32_t frame, uint32_t type)
{
    int error;

    if (p2m_is_foreign(p2m_entry(d, pfn)))
        return -EBUSY;
    frame_get(d->m, frame);
    error = p2m_exchange(d, pfn, (type << P2M_TYPE_SHIFT) | frame, 0);
    if (error)
        frame_put(d->m, frame);
    return error;
}
