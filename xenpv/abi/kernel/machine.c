/*
 * Machine memory: the frames of one arena, who owns each and how many hold it.
 *
 * Freed frames are scrubbed, so that a fresh page reads zero as in a release build of Xen.
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
    m->outstanding_claims = m->drained = 0;
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

/*
 * What code outside of the kernel is about to do to a frame that it maps itself (a C driver
 * under test): as one of the kernel's own accesses. Non-zero: it must not happen.
 */
static int machine_access(machine *m, uint32_t actor, uint32_t kind, uint32_t frame,
                          uint32_t offset, uint32_t size)
{
    KERNEL_ENTER(m);
    return m->hook ? m->hook(m->hook_context, actor, kind, frame, offset, size) : 0;
}

/* Whether a hook wants to hear of accesses. */
static int machine_hooked(machine *m) { return m->hook != NULL; }

static uint32_t machine_free_pages(machine *m) { return m->free_pages; }
static uint32_t machine_used_frames(machine *m) { return m->high_water - m->nr_free_list; }
static uint32_t machine_high_water(machine *m) { return m->high_water; }

static inline uint8_t *frame_address(machine *m, uint32_t frame)
{
    return m->base + ((size_t)frame << FRAME_SHIFT);
}

/* A frame for domain `domid`, whose page it is even where Xen owns it. */
static uint32_t frame_alloc(machine *m, uint16_t owner, uint16_t domid)
{
    struct frame_info *info;
    uint32_t frame;

    if (m->nr_free_list)
        frame = m->free_list[--m->nr_free_list];
    else if (m->high_water < m->nr_frames)
        frame = m->high_water++;
    else
        return FRAME_NONE;
    info = &m->frames[frame];
    info->refs = 1;
    info->owner = owner;
    info->domid = domid;
    info->link = FRAME_NONE;
    if (owner != OWNER_XEN)
        m->domains[domid]->nr_frames++;
    return frame;
}

static inline void frame_get(machine *m, uint32_t frame) { m->frames[frame].refs++; }

/* Whoever dropped the last frame that kept a dead domain asks for this. */
static void domain_drained(domain *d)
{
    if (d->relinquished && !d->tot_pages && !d->foreign_special)
        d->m->drained = 1;
}

static uint32_t machine_take_drained(machine *m)
{
    uint32_t drained = m->drained;

    m->drained = 0;
    return drained;
}

/*
 * Drop a reference. The last one scrubs and frees the frame, and only then it leaves its
 * owner's tot_pages (put_page and free_domheap_pages of Xen).
 */
static void frame_put(machine *m, uint32_t frame)
{
    struct frame_info *info = &m->frames[frame];
    domain *owner;

    if (--info->refs)
        return;
    owner = info->owner == OWNER_XEN ? NULL : m->domains[info->domid];
    if (owner) {
        owner->nr_frames--;
        owner->tot_pages--;
        domain_drained(owner);
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
