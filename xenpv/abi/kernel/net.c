/*
 * netif tx in batches, for slots that are whole packets: columns to judge them by, their
 * bytes, their responses. What a packet may be is Python's to say; a verdict is the status
 * that its response will carry. Chains and extras are Python's altogether.
 */
#include "domain.h"

/* What a verdict on a group of slots at once has to know. */
struct net_group {
    uint32_t flags;             /* OR of all */
    uint32_t smallest;          /* bytes */
    uint32_t furthest;          /* where the last byte of any ends in its page */
    uint32_t bytes;             /* of all together */
};

/* One ring's passes, bound once. The arrays are private: a slot each, a group each. */
struct net_pass {
    ring *ring;
    void *requests;
    int8_t *verdicts;
    struct net_group *groups;
    uint32_t group;             /* slots */
};

/* All requests that are there, copied once, with the columns of each group: their number. */
static int64_t net_take(struct net_pass *p)
{
    const struct netif_tx_request *request = p->requests;
    struct net_group *group = p->groups;
    /* netback bounds by what it consumed: what waits for a slot to answer in is no offence. */
    int64_t n = take_requests(p->ring, p->requests, p->ring->size, sizeof(*request), p->ring->cons);

    for (int64_t i = 0; i < n; i++, request++) {
        uint32_t end = (uint32_t)request->offset + request->size;

        if (i % p->group == 0) {
            group = &p->groups[i / p->group];
            *group = (struct net_group){ .smallest = UINT32_MAX };
        }
        group->flags |= request->flags;
        group->bytes += request->size;
        if (request->size < group->smallest)
            group->smallest = request->size;
        if (end > group->furthest)
            group->furthest = end;
    }
    return n;
}

/*
 * The bytes of n slots from `first` on, back to back; ends[i] is where those of slot
 * first + i end in `local`. A copy that fails makes the slot an ERROR; how many did.
 */
static int64_t net_copy(struct net_pass *p, domain *granter, uint32_t first, uint32_t n,
                        uint32_t *ends, void *local, uint32_t local_size)
{
    const struct netif_tx_request *request = (const struct netif_tx_request *)p->requests + first;
    domain *self = p->ring->d;
    struct call c = call_begin(self->m, self->domid, 0);
    uint32_t at = 0;
    int64_t failed = 0;

    KERNEL_ENTER(self->m);
    if (first > p->ring->size || n > p->ring->size - first)
        return -EINVAL;
    for (uint32_t i = 0; i < n && !c.aborted; i++, request++) {
        int status;

        if (request->size > local_size - at)
            return -EINVAL;
        status = copy_piece(&c, self, granter, 0, request->gref, request->offset, request->size,
                            (uint8_t *)local + at);
        p->verdicts[first + i] = status ? NETIF_RSP_ERROR : NETIF_RSP_OKAY;
        failed += status != 0;
        at += request->size;
        ends[i] = at;
    }
    return call_end(&c, failed);
}

/* One response for each of n slots from `first` on, in order; 1: notify the frontend. */
static int64_t net_answer(struct net_pass *p, uint32_t first, uint32_t n)
{
    const struct netif_tx_request *request = (const struct netif_tx_request *)p->requests + first;
    ring *r = p->ring;
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    union netif_tx_sring_entry entry;
    int notify, error = ring_enter(r);

    if (error)
        return error;
    if (n > back_inflight(r))
        return -ENOSPC;
    if (r->entry_size != sizeof(entry) || first > r->size || n > r->size - first)
        return -EINVAL;
    if (!n)
        return 0;
    memset(&entry, 0, sizeof(entry));       /* a response shows nothing of the backend (XSA-216) */
    for (uint32_t i = 0; i < n && !c.aborted; i++, request++) {
        entry.rsp.id = request->id;
        entry.rsp.status = p->verdicts[first + i];
        slot_write(&c, r, r->prod_pvt + i, (const uint8_t *)&entry, sizeof(entry));
    }
    if (c.aborted)
        return KERNEL_E_ABORTED;
    notify = ring_publish(&c, r, RSP_PROD, RSP_EVENT, n);
    return call_end(&c, notify);
}
