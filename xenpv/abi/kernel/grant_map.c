/*
 * Mappings of grants in a domain's physmap, and GNTTABOP_transfer. Handles are Python's
 * (xen/maptrack.py); here are the pins and the p2m (create_grant_p2m_mapping and
 * replace_grant_p2m_mapping of xen/arch/x86/mm.c).
 */
#include "domain.h"

#define MAP_CRASH 1             /* the caller did what crashes a domain in Xen */

/* A GNTST, or MAP_CRASH with the status of that. */
static int map_host(domain *mapper, const struct gnttab_map_grant_ref *op, uint16_t entry_flags,
                    uint32_t frame)
{
    int error;

    if (op->host_addr >> FRAME_SHIFT >= P2M_PFNS)
        return GNTST_general_error;
    if (!mapper->is_pv && ((entry_flags & (GTF_PWT | GTF_PCD | GTF_PAT)) ||
                           (op->flags & ~(uint32_t)(GNTMAP_readonly | GNTMAP_host_map))))
        return GNTST_general_error;
    error = p2m_place(mapper, (uint32_t)(op->host_addr >> FRAME_SHIFT), frame,
                      op->flags & GNTMAP_readonly ? P2M_GRANT_RO : P2M_GRANT_RW);
    if (error)
        return error == -EBUSY && !mapper->is_pv ? MAP_CRASH : GNTST_general_error;
    return GNTST_okay;
}

static uint32_t pins_of(uint32_t flags)
{
    uint32_t pins = 0;

    if (flags & GNTMAP_host_map)
        pins |= flags & GNTMAP_readonly ? PIN_HOST_READ : PIN_HOST_WRITE;
    if (flags & GNTMAP_device_map)
        pins |= flags & GNTMAP_readonly ? PIN_DEVICE_READ : PIN_DEVICE_WRITE;
    return pins;
}

/*
 * GNTTABOP_map_grant_ref from the reference's range on; flags, domain and handle were
 * settled before. A GNTST, or MAP_CRASH: then the status is GNTST_general_error.
 */
static int64_t grant_map(domain *mapper, domain *granter, void *map_grant_ref)
{
    struct call c = call_begin(granter->m, mapper->domid, ACCESS_HYPERVISOR);
    struct gnttab_map_grant_ref *op = map_grant_ref;
    int readonly = !!(op->flags & GNTMAP_readonly), status;
    uint32_t pins = pins_of(op->flags);
    struct grant_entry e;

    KERNEL_ENTER(granter->m);
    granter->grant_ops++;
    status = entry_pin_map(&c, granter, mapper->domid, op->ref, readonly, pins, &e);
    if (!status) {
        uint16_t flags = shared_load16(&c, e.shared);

        if (c.aborted)
            status = GNTST_general_error;
        else if (op->flags & GNTMAP_host_map)
            status = map_host(mapper, op, flags, e.active->frame);
        if (status)
            entry_unpin(&c, granter, &e, pins, readonly);
        else
            op->dev_bus_addr = (uint64_t)e.active->frame << FRAME_SHIFT;
    }
    granter->grant_ops--;
    return call_end(&c, status);
}

/*
 * The first half of an unmap: checks, and the mapping itself. *done is what grant_unpin has
 * to drop once the TLBs are flushed: GNTMAP_host_map, GNTMAP_device_map, GNTMAP_readonly.
 */
static int64_t grant_unmap(domain *mapper, domain *granter, uint32_t ref, uint32_t flags,
                           uint64_t host_addr, uint64_t dev_bus_addr, uint64_t new_addr,
                           uint32_t *done)
{
    struct grant_entry e;

    KERNEL_ENTER(mapper->m);
    *done = 0;
    if (entry_find(granter, ref, &e) || !e.active->pin)
        return GNTST_bad_handle;
    if (dev_bus_addr && (flags & GNTMAP_device_map) &&
        dev_bus_addr != (uint64_t)e.active->frame << FRAME_SHIFT)
        return GNTST_bad_dev_addr;
    if (host_addr && (flags & GNTMAP_host_map)) {
        uint64_t pfn = host_addr >> FRAME_SHIFT;
        uint32_t entry = pfn < P2M_PFNS ? p2m_entry(mapper, (uint32_t)pfn) : 0;
        uint32_t type = entry >> P2M_TYPE_SHIFT;

        if (new_addr || (type != P2M_GRANT_RW && type != P2M_GRANT_RO) ||
            (entry & P2M_FRAME_MASK) != e.active->frame)
            return GNTST_general_error;
        p2m_clear(mapper, (uint32_t)pfn);
        *done |= GNTMAP_host_map;
    }
    if (dev_bus_addr && (flags & GNTMAP_device_map))
        *done |= GNTMAP_device_map;
    if (*done)
        *done |= flags & GNTMAP_readonly;
    return GNTST_okay;
}

static int grant_unpin(domain *mapper, domain *granter, uint32_t ref, uint32_t done)
{
    struct call c = call_begin(granter->m, mapper->domid, ACCESS_HYPERVISOR);
    struct grant_entry e;

    KERNEL_ENTER(granter->m);
    if (!pins_of(done) || entry_find(granter, ref, &e))
        return 0;
    entry_unpin(&c, granter, &e, pins_of(done), !!(done & GNTMAP_readonly));
    return (int)call_end(&c, 0);
}

/* flags must be GTF_accept_transfer and nothing else, domid the giver's. */
static int transfer_commit(struct call *c, const struct grant_entry *e, uint16_t from)
{
    uint32_t word = shared_load32(c, e->shared);

    for (int tries = 0; tries <= CAS_RETRIES_MAX && !c->aborted; tries++) {
        if (word != (GTF_accept_transfer | (uint32_t)from << 16))
            return 0;
        if (shared_cas32(c, e->shared, &word, word | GTF_transfer_committed))
            return 1;
    }
    return 0;
}

/* The page is `to`'s from here on, at the pfn that its entry names; lost if it cannot be there. */
static int transfer_give(struct call *c, domain *from, domain *to, const struct grant_entry *e,
                         uint32_t frame)
{
    uint64_t pfn = entry_gfn(c, to, e);
    int error;

    from->tot_pages--;
    from->nr_frames--;
    to->tot_pages++;
    to->nr_frames++;
    to->m->frames[frame].owner = to->m->frames[frame].domid = to->domid;
    error = pfn < P2M_PFNS ? p2m_place(to, (uint32_t)pfn, frame, P2M_RAM) : -EINVAL;
    frame_put(to->m, frame);
    if (error)
        return GNTST_general_error;
    if (to->is_pv && to->grant_version == 1)
        shared_store32(c, e->shared + 4, frame);
    else if (to->is_pv)
        shared_store64(c, e->shared + 8, frame);
    barrier_write();
    shared_fetch_or16(c, e->shared, GTF_transfer_completed);
    return GNTST_okay;
}

/*
 * GNTTABOP_transfer of one page; a GNTST. A translated caller keeps its page. Of a PV one
 * the mfn must be its own RAM with no other reference; once it is taken, every failure
 * loses it. GNTST_address_too_big cannot come: no mfn of an arena exceeds 32 bits.
 */
static int64_t grant_transfer(domain *from, void *transfer)
{
    struct call c = call_begin(from->m, from->domid, ACCESS_HYPERVISOR);
    struct gnttab_transfer *op = transfer;
    struct grant_entry e;
    domain *to;
    uint32_t frame = (uint32_t)op->mfn, pfn;
    int type;

    KERNEL_ENTER(from->m);
    if (!from->is_pv) {
        type = op->mfn < P2M_PFNS ? p2m_type(from, frame) : P2M_NONE;
        return type == P2M_NONE ? GNTST_bad_page : GNTST_general_error;
    }
    if (op->mfn >= from->m->high_water || from->m->frames[frame].refs != 1)
        return GNTST_bad_page;
    pfn = p2m_find(from, frame);
    if (pfn == P2M_FRAME_MASK)
        return GNTST_bad_page;
    from->m->frames[frame].refs++;
    p2m_clear(from, pfn);
    to = op->domid < NR_DOMIDS ? from->m->domains[op->domid] : NULL;
    if (!to || to->is_dying || to->tot_pages >= to->max_pages || entry_find(to, op->ref, &e) ||
        !transfer_commit(&c, &e, from->domid)) {
        frame_put(from->m, frame);
        return call_end(&c, to ? GNTST_general_error : GNTST_bad_domain);
    }
    return call_end(&c, transfer_give(&c, from, to, &e, frame));
}
