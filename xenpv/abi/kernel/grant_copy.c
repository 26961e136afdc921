/*
 * GNTTABOP_copy: between pages of the caller and entries of anyone, and between entries and
 * a caller's private buffer. Entries are checked under the lock, data moves without it.
 */
#include "domain.h"

/* One side of the copy: what the last operation left pinned, for the next to use again. */
struct copy_side {
    domain *owner;              /* NULL: nothing is held */
    uint64_t name;              /* ref or gmfn */
    uint32_t frame;
    uint16_t domid;             /* as the caller wrote it */
    uint16_t start, length;
    uint8_t is_ref, write;
};

static void side_drop(struct call *c, struct copy_side *side)
{
    if (!side->owner)
        return;
    c->flags = ACCESS_HYPERVISOR;
    if (side->is_ref)
        copy_unpin(c, side->owner, (uint32_t)side->name, !side->write);
    frame_put(c->m, side->frame);
    side->owner = NULL;
}

/* Whom a side names: a frame only oneself, by DOMID_SELF. */
static int side_domain(domain *self, const struct gnttab_copy_ptr *ptr, int is_ref, domain **found)
{
    if (!is_ref && ptr->domid != DOMID_SELF)
        return GNTST_permission_denied;
    *found = ptr->domid == DOMID_SELF ? self
             : ptr->domid < NR_DOMIDS ? self->m->domains[ptr->domid] : NULL;
    return *found ? GNTST_okay : GNTST_bad_domain;
}

static int side_claim(struct call *c, domain *self, domain *owner,
                      const struct gnttab_copy_ptr *ptr, int is_ref, int transitive,
                      struct copy_side *side)
{
    uint64_t name = is_ref ? ptr->u.ref : ptr->u.gmfn;
    struct active_entry *active;
    int status;

    if (side->owner && side->is_ref == is_ref && side->name == name)
        return GNTST_okay;
    side_drop(c, side);
    if (is_ref) {
        c->flags = ACCESS_HYPERVISOR;
        status = copy_pin(c, owner, self->domid, (uint32_t)name, !side->write, transitive, &active);
        if (status)
            return status;
        side->frame = active->frame;
        side->start = active->start;
        side->length = active->length;
    } else {
        uint8_t *page = name < P2M_PFNS ? page_address(self, (uint32_t)name, side->write) : NULL;

        if (!page || p2m_type(self, (uint32_t)name) == P2M_FOREIGN)
            return GNTST_bad_page;
        side->frame = (uint32_t)((page - self->m->base) >> FRAME_SHIFT);
        side->start = 0;
        side->length = FRAME_SIZE;
    }
    c->m->frames[side->frame].refs++;       /* the page stays while this side holds it */
    side->owner = owner;
    side->name = name;
    side->domid = ptr->domid;
    side->is_ref = (uint8_t)is_ref;
    return GNTST_okay;
}

static int side_outside(const struct copy_side *side, uint32_t offset, uint32_t len)
{
    return offset < side->start || offset + len > (uint32_t)side->start + side->length;
}

static int copy_one(struct call *c, domain *self, const struct gnttab_copy *op, int transitive,
                    struct copy_side *from, struct copy_side *to)
{
    int from_ref = !!(op->flags & GNTCOPY_source_gref), to_ref = !!(op->flags & GNTCOPY_dest_gref);
    domain *source, *dest;
    uint8_t *in, *out;
    int status = side_domain(self, &op->source, from_ref, &source);

    if (!status)
        status = side_domain(self, &op->dest, to_ref, &dest);
    if (status)
        return status;
    if ((from->owner && from->domid != op->source.domid) ||
        (to->owner && to->domid != op->dest.domid)) {
        side_drop(c, from);
        side_drop(c, to);
    }
    status = side_claim(c, self, source, &op->source, from_ref, transitive, from);
    if (!status)
        status = side_claim(c, self, dest, &op->dest, to_ref, transitive, to);
    if (status)
        return status;
    if ((uint32_t)op->source.offset + op->len > FRAME_SIZE ||
        (uint32_t)op->dest.offset + op->len > FRAME_SIZE)
        return GNTST_bad_copy_arg;
    if (side_outside(from, op->source.offset, op->len) || side_outside(to, op->dest.offset, op->len))
        return GNTST_general_error;
    in = frame_address(self->m, from->frame) + op->source.offset;
    out = frame_address(self->m, to->frame) + op->dest.offset;
    c->flags = ACCESS_COPY;
    if (!access_begins(c, ACCESS_READ, in, op->len) && !access_begins(c, ACCESS_WRITE, out, op->len))
        memmove(out, in, op->len);
    return GNTST_okay;
}

/*
 * A batch of struct gnttab_copy: every operation gets its status. Consecutive ones on the
 * same page keep it pinned; an error lets both sides go. Returns how many did not end in
 * GNTST_okay.
 */
static int64_t grant_copy(domain *self, void *ops, uint32_t n, int allow_transitive)
{
    struct call c = call_begin(self->m, self->domid, ACCESS_HYPERVISOR);
    struct gnttab_copy *slot = ops;
    struct copy_side from = { 0 }, to = { .write = 1 };
    int64_t failed = 0;

    KERNEL_ENTER(self->m);
    for (uint32_t i = 0; i < n && !c.aborted; i++, slot++) {
        struct gnttab_copy op = *slot;
        int status = GNTST_okay;

        if (op.len)
            status = copy_one(&c, self, &op, allow_transitive, &from, &to);
        if (status) {
            side_drop(&c, &from);
            side_drop(&c, &to);
            failed++;
        }
        slot->status = (int16_t)status;
    }
    side_drop(&c, &from);
    side_drop(&c, &to);
    return call_end(&c, failed);
}

/* One piece between a granted page and private memory of `self`; a GNTST. */
static inline int copy_piece(struct call *c, domain *self, domain *granter, int to_guest,
                             uint32_t ref, uint32_t offset, uint32_t len, uint8_t *local)
{
    struct active_entry *active;
    uint8_t *page;
    int status;

    if (!len)
        return GNTST_okay;
    if (offset + len > FRAME_SIZE || len > FRAME_SIZE)
        return GNTST_bad_copy_arg;
    c->flags = ACCESS_HYPERVISOR;
    status = copy_pin_quick(c, granter, self->domid, ref, !to_guest, &active);
    if (status)
        return status;
    if (offset < active->start || offset + len > (uint32_t)active->start + active->length) {
        status = GNTST_general_error;
    } else {
        page = frame_address(self->m, active->frame) + offset;
        c->flags = ACCESS_COPY;
        if (to_guest)
            shared_copy_in(c, page, local, len);
        else
            shared_copy_out(c, local, page, len);
        c->flags = ACCESS_HYPERVISOR;
    }
    copy_unpin(c, granter, ref, !to_guest);
    return status;
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
