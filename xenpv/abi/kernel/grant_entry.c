/*
 * The checks of a grant entry and its pins, for maps and for copies, in both versions.
 * Order and results: map_grant_ref, _set_status and acquire_grant_for_copy of
 * xen/common/grant_table.c. Everything here happens under Xen's grant table lock.
 */
#include "domain.h"

#define CAS_RETRIES_MAX 4               /* a granter that keeps changing an entry is refused */

static inline void status_clear(struct call *c, uint16_t *status, uint16_t bits)
{
    shared_fetch_and16(c, status, (uint16_t)~bits);
    /* A hook that ends the call does not leave bits behind: nobody else would clear them. */
    if (__builtin_expect(c->aborted, 0))
        __atomic_fetch_and(status, (uint16_t)~bits, __ATOMIC_SEQ_CST);
}

/* Type, domid and readonly; then reading and writing, in one compare-exchange. */
static inline int status_set_v1(struct call *c, const struct grant_entry *e, uint16_t by,
                                int readonly, uint32_t mask)
{
    uint32_t set = readonly ? GTF_reading : GTF_in_use;
    uint32_t word = shared_load32(c, e->shared);

    for (int tries = 0; tries <= CAS_RETRIES_MAX; tries++) {
        if (c->aborted)
            return GNTST_general_error;
        if (!e->active->pin && ((word & mask) != GTF_permit_access || word >> 16 != by))
            return GNTST_general_error;
        if (!readonly && (word & GTF_readonly))
            return GNTST_general_error;
        if (shared_cas32(c, e->shared, &word, word | set))
            return GNTST_okay;
    }
    return GNTST_general_error;
}

static int header_permits(uint32_t word, uint16_t by, uint32_t mask)
{
    uint32_t type = word & mask;

    /* Only a copy's mask is without sub_page, and only a copy may go by a transitive entry. */
    return word >> 16 == by && (type == GTF_permit_access ||
                                (type == GTF_transitive && !(mask & GTF_sub_page)));
}

/* Set the status, a barrier, then look again whether the entry still permits. */
static int status_set_v2(struct call *c, const struct grant_entry *e, uint16_t by, int readonly,
                         uint32_t mask)
{
    uint32_t word = shared_load32(c, e->shared);

    if (c->aborted || (!e->active->pin && !header_permits(word, by, mask)) ||
        (!readonly && (word & GTF_readonly)))
        return GNTST_general_error;
    shared_fetch_or16(c, e->status, readonly ? GTF_reading : GTF_in_use);
    barrier_full();
    word = shared_load32(c, e->shared);
    if (!e->active->pin) {
        if (!c->aborted && header_permits(word, by, mask) && (readonly || !(word & GTF_readonly)))
            return GNTST_okay;
        status_clear(c, e->status, GTF_in_use);
        return GNTST_general_error;
    }
    if (!c->aborted && !(word & GTF_readonly))
        return GNTST_okay;
    status_clear(c, e->status, GTF_writing);
    return GNTST_general_error;
}

static inline int status_set(struct call *c, const domain *granter, const struct grant_entry *e,
                             uint16_t by, int readonly, int mapping)
{
    uint32_t mask = mapping ? GTF_type_mask | GTF_sub_page : GTF_type_mask;

    if (__builtin_expect(granter->grant_version == 1, 1))
        return status_set_v1(c, e, by, readonly, mask);
    return status_set_v2(c, e, by, readonly, mask);
}

/* What the pins no longer account for; called when an acquisition failed half way. */
static int status_undo(struct call *c, const struct grant_entry *e, int readonly, int status)
{
    uint16_t bits = !readonly && !(e->active->pin & PIN_WRITERS) ? GTF_writing : 0;

    if (!e->active->pin)
        bits |= GTF_reading;
    if (bits)
        status_clear(c, e->status, bits);
    return status;
}

/* RAM of the granter's own, taken from the arena at the first touch; GNTST_bad_page. */
static inline int granted_frame(domain *granter, uint64_t gfn, uint32_t *frame)
{
    uint32_t entry = 0, leaf = (uint32_t)(gfn / P2M_LEAF);

    if (gfn >= P2M_PFNS || granter->is_dying)
        return GNTST_bad_page;
    if (leaf < granter->nr_leaves && granter->leaves[leaf])
        entry = granter->leaves[leaf][gfn % P2M_LEAF];
    if (__builtin_expect(entry >> P2M_TYPE_SHIFT != P2M_RAM, 0)) {
        entry = p2m_touch(granter, (uint32_t)gfn);
        if (entry >> P2M_TYPE_SHIFT != P2M_RAM)
            return GNTST_bad_page;
    }
    *frame = entry & P2M_FRAME_MASK;
    return GNTST_okay;
}

static inline uint64_t entry_gfn(struct call *c, const domain *granter, const struct grant_entry *e)
{
    if (__builtin_expect(granter->grant_version == 1, 1))
        return shared_load32(c, e->shared + 4);
    return shared_load64(c, e->shared + 8);
}

static inline void entry_pinned(domain *granter, struct active_entry *active, uint32_t pins)
{
    active->pin += pins;
    granter->m->frames[active->frame].refs += pins & (pins - 1) ? 2 : 1;
}

/* Pin an entry for a mapping of `by`: one or two counters of PIN_*; a GNTST. */
static int entry_pin_map(struct call *c, domain *granter, uint16_t by, uint32_t ref, int readonly,
                         uint32_t pins, struct grant_entry *e)
{
    struct active_entry *active;
    int status = entry_find(granter, ref, e);

    if (status)
        return status;
    active = e->active;
    if (active->pin && (active->domid != by || active->is_sub_page || granter->is_dying ||
                        (active->pin & pins << PIN_OVERFLOW_SHIFT)))
        return GNTST_general_error;
    if (!active->pin || (!readonly && !(active->pin & PIN_WRITERS))) {
        status = status_set(c, granter, e, by, readonly, 1);
        if (status)
            return status;
        if (!active->pin) {
            status = granted_frame(granter, entry_gfn(c, granter, e), &active->frame);
            if (status || c->aborted)
                return status_undo(c, e, readonly, status ? status : GNTST_general_error);
            active->domid = by;
            active->start = 0;
            active->length = FRAME_SIZE;
            active->is_sub_page = 0;
            active->hop = NULL;
        }
    }
    entry_pinned(granter, active, pins);
    return GNTST_okay;
}

static inline void entry_unpin(struct call *c, domain *granter, struct grant_entry *e,
                               uint32_t pins, int readonly)
{
    struct active_entry *active = e->active;
    uint16_t bits = 0;

    active->pin -= pins;
    if (!readonly && !(active->pin & PIN_WRITERS))
        bits = GTF_writing;
    if (!active->pin)
        bits |= GTF_reading;
    if (bits)
        status_clear(c, e->status, bits);
    if (pins & (pins - 1))
        frame_put(granter->m, active->frame);
    frame_put(granter->m, active->frame);
}

static void hop_unpin(struct call *c, domain *granter, struct grant_entry *e, int readonly);

static inline void copy_unpin(struct call *c, domain *granter, uint32_t ref, int readonly)
{
    struct grant_entry e;

    if (entry_find(granter, ref, &e))
        return;
    if (__builtin_expect(e.active->hop != NULL, 0))
        hop_unpin(c, granter, &e, readonly);
    else
        entry_unpin(c, granter, &e, readonly ? PIN_HOST_READ : PIN_HOST_WRITE, readonly);
}

static void hop_unpin(struct call *c, domain *granter, struct grant_entry *e, int readonly)
{
    domain *hop = e->active->hop;
    uint32_t hop_ref = e->active->hop_ref;

    entry_unpin(c, granter, e, readonly ? PIN_HOST_READ : PIN_HOST_WRITE, readonly);
    copy_unpin(c, hop, hop_ref, readonly);      /* one deep: a hop has none of its own */
}

static int copy_pin(struct call *c, domain *granter, uint16_t by, uint32_t ref, int readonly,
                    int transitive, struct active_entry **pinned);

/*
 * The entry that a transitive one stands for, pinned for the intermediate domain. Once only
 * (XSA-226); what it resolves to must be what the pins already there hold (XSA-500).
 */
static int hop_pin(struct call *c, domain *granter, const struct grant_entry *e, int readonly,
                   int transitive, struct active_entry *into)
{
    struct active_entry *active = e->active, *behind;
    domain *hop;
    uint32_t ref;
    uint16_t domid;
    int status;

    if (!transitive)
        return GNTST_general_error;
    domid = shared_load16(c, e->shared + 4);
    ref = shared_load32(c, e->shared + 8);
    hop = domid < NR_DOMIDS ? granter->m->domains[domid] : NULL;
    if (c->aborted || !hop || hop == granter)
        return GNTST_general_error;
    status = copy_pin(c, hop, granter->domid, ref, readonly, 0, &behind);
    if (status)
        return status;
    if (active->pin && (active->hop != hop || active->hop_ref != ref || !active->is_sub_page ||
                        active->frame != behind->frame || active->start != behind->start ||
                        active->length != behind->length)) {
        copy_unpin(c, hop, ref, readonly);
        return GNTST_general_error;
    }
    *into = *behind;
    into->is_sub_page = 1;
    into->hop = hop;
    into->hop_ref = ref;
    return GNTST_okay;
}

/* What an entry that is no transitive one gives a copy. */
static inline int page_of_entry(struct call *c, domain *granter, const struct grant_entry *e,
                                struct active_entry *into)
{
    into->start = 0;
    into->length = FRAME_SIZE;
    into->is_sub_page = 0;
    into->hop = NULL;
    if (granter->grant_version == 2 && (shared_load16(c, e->shared) & GTF_sub_page)) {
        into->is_sub_page = 1;
        into->start = shared_load16(c, e->shared + 4);
        into->length = shared_load16(c, e->shared + 6);
    }
    return granted_frame(granter, entry_gfn(c, granter, e), &into->frame);
}

static int same_window(const struct active_entry *a, const struct active_entry *b)
{
    return a->frame == b->frame && a->start == b->start && a->length == b->length &&
           a->is_sub_page == b->is_sub_page && a->hop == b->hop;
}

/* The first pin of an entry that is no transitive one. */
static inline int copy_pin_first(struct call *c, domain *granter, const struct grant_entry *e,
                                 uint16_t by, int readonly)
{
    int status = status_set(c, granter, e, by, readonly, 0);

    if (status)
        return status;
    status = page_of_entry(c, granter, e, e->active);
    if (status || c->aborted)
        return status_undo(c, e, readonly, status ? status : GNTST_general_error);
    e->active->domid = by;
    return GNTST_okay;
}

/* The first pin that writes, beside others that read: it must mean what they pinned. */
static int copy_pin_writer(struct call *c, domain *granter, const struct grant_entry *e,
                           uint16_t by)
{
    struct active_entry found;
    int status = status_set(c, granter, e, by, 0, 0);

    if (status)
        return status;
    status = page_of_entry(c, granter, e, &found);
    if (!status && (c->aborted || !same_window(e->active, &found)))
        status = GNTST_general_error;
    return status ? status_undo(c, e, 0, status) : GNTST_okay;
}

static int copy_pin_transitive(struct call *c, domain *granter, const struct grant_entry *e,
                               uint16_t by, int readonly, int transitive)
{
    struct active_entry *active = e->active, found = *active;
    int status = GNTST_okay;

    if (!active->pin || (!readonly && !(active->pin & PIN_WRITERS)))
        status = status_set(c, granter, e, by, readonly, 0);
    if (status)
        return status;
    status = hop_pin(c, granter, e, readonly, transitive, &found);
    if (status)
        return status_undo(c, e, readonly, status);
    if (!active->pin) {
        found.domid = by;
        found.pin = 0;
        *active = found;
    }
    return GNTST_okay;
}

/* Pin an entry for a copy of `by`; a GNTST. *pinned says which bytes of which frame. */
static int copy_pin(struct call *c, domain *granter, uint16_t by, uint32_t ref, int readonly,
                    int transitive, struct active_entry **pinned)
{
    uint32_t pins = readonly ? PIN_HOST_READ : PIN_HOST_WRITE;
    struct grant_entry e;
    struct active_entry *active;
    int status = entry_find(granter, ref, &e);

    if (status)
        return status;
    active = *pinned = e.active;
    if (active->pin && (active->domid != by || (active->pin & pins << PIN_OVERFLOW_SHIFT)))
        return GNTST_general_error;
    granter->grant_ops++;
    if (granter->grant_version == 2 &&
        (shared_load16(c, e.shared) & GTF_type_mask) == GTF_transitive)
        status = copy_pin_transitive(c, granter, &e, by, readonly, transitive);
    else if (!active->pin)
        status = copy_pin_first(c, granter, &e, by, readonly);
    else if (!readonly && !(active->pin & PIN_WRITERS))
        status = copy_pin_writer(c, granter, &e, by);
    else if (granter->is_dying || active->hop)
        status = status_undo(c, &e, readonly, GNTST_bad_domain);
    granter->grant_ops--;
    if (status)
        return status;
    entry_pinned(granter, active, pins);
    return GNTST_okay;
}

/* The same for what most copies meet: an entry of version 1 that nobody has pinned. */
static inline int copy_pin_quick(struct call *c, domain *granter, uint16_t by, uint32_t ref,
                                 int readonly, struct active_entry **pinned)
{
    struct grant_entry e;
    int status;

    if (__builtin_expect(granter->grant_version != 1, 0) || entry_find(granter, ref, &e) ||
        e.active->pin)
        return copy_pin(c, granter, by, ref, readonly, 1, pinned);
    *pinned = e.active;
    granter->grant_ops++;
    status = copy_pin_first(c, granter, &e, by, readonly);
    granter->grant_ops--;
    if (!status)
        entry_pinned(granter, e.active, readonly ? PIN_HOST_READ : PIN_HOST_WRITE);
    return status;
}
