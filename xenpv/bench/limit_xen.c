/*
 * The C limit once more, over the macros of Xen's own io/ring.h, where libxen-dev was
 * installed when this was built. What is no matter of rings is limit.c's; after a run both
 * texts leave the same bytes in a ring (tests/bench/test_limit.py).
 */
#define mb() barrier_full()
#define rmb() barrier_read()
#define wmb() barrier_write()

#include <xen/io/ring.h>

DEFINE_RING_TYPES(xen_blk, struct blkif_request, struct blkif_response);
DEFINE_RING_TYPES(xen_net, struct netif_tx_request, struct netif_tx_response);

_Static_assert(sizeof(union xen_blk_sring_entry) == sizeof(struct blkif_request), "blkif slot");
_Static_assert(sizeof(union xen_net_sring_entry) == sizeof(union netif_tx_sring_entry), "tx slot");

/* Both halves of a ring, at the indices where the last run of either text ended. */
#define XEN_BEGIN(front, back, sring_, front_end, back_end)                                      \
    do {                                                                                        \
        FRONT_RING_ATTACH(front, sring_, (front_end)->prod_pvt, LIMIT_PAGE);                    \
        (front)->rsp_cons = (front_end)->cons;                                                  \
        BACK_RING_ATTACH(back, sring_, (back_end)->prod_pvt, LIMIT_PAGE);                       \
        (back)->req_cons = (back_end)->cons;                                                    \
    } while (0)

#define XEN_END(front, back, front_end, back_end)                                               \
    do {                                                                                        \
        (front_end)->prod_pvt = (front)->req_prod_pvt;                                          \
        (front_end)->cons = (front)->rsp_cons;                                                  \
        (back_end)->prod_pvt = (back)->rsp_prod_pvt;                                            \
        (back_end)->cons = (back)->req_cons;                                                    \
    } while (0)

ALWAYS_INLINE void xen_blk_queue(struct limit *l, struct xen_blk_front_ring *front,
                                 uint32_t segments, uint32_t batch)
{
    int notify;

    for (uint32_t i = 0; i < batch; i++)
        limit_blk_fill(l, RING_GET_REQUEST(front, front->req_prod_pvt++), l->free_ids[i], segments);
    l->result.requests += batch;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(front, notify);
    l->result.req_events += notify;
}

ALWAYS_INLINE void xen_blk_back(struct limit *l, struct xen_blk_back_ring *back)
{
    int more, notify;

    do {
        RING_IDX last = back->sring->req_prod;

        xen_rmb();
        if (RING_REQUEST_PROD_OVERFLOW(back, last))
            return;
        while (back->req_cons != last) {
            struct blkif_request request;

            RING_COPY_REQUEST(back, back->req_cons++, &request);
            limit_blk_answer(l, NULL, &request, RING_GET_RESPONSE(back, back->rsp_prod_pvt++));
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(back, notify);
        l->result.rsp_events += notify;
        RING_FINAL_CHECK_FOR_REQUESTS(back, more);
    } while (more);
}

ALWAYS_INLINE void xen_blk_reap(struct limit *l, struct xen_blk_front_ring *front)
{
    uint32_t free = 0;
    int more;

    do {
        RING_IDX last = front->sring->rsp_prod;

        xen_rmb();
        while (front->rsp_cons != last) {
            const struct blkif_response *response = RING_GET_RESPONSE(front, front->rsp_cons++);

            limit_done(l, response->id, LIMIT_BLK_SLOTS, response->status, &free);
        }
        RING_FINAL_CHECK_FOR_RESPONSES(front, more);
    } while (more);
}

NOINLINE void limit_blk_xen(struct limit *l, uint32_t segments, uint32_t batch, uint32_t rounds)
{
    struct xen_blk_front_ring front;
    struct xen_blk_back_ring back;

    XEN_BEGIN(&front, &back, (struct xen_blk_sring *)l->blk, &l->blk_front, &l->blk_back);
    for (uint32_t i = 0; i < rounds; i++) {
        xen_blk_queue(l, &front, segments, batch);
        xen_blk_back(l, &back);
        xen_blk_reap(l, &front);
    }
    XEN_END(&front, &back, &l->blk_front, &l->blk_back);
}

ALWAYS_INLINE void xen_net_queue(struct limit *l, struct xen_net_front_ring *front, uint32_t size,
                                 uint32_t batch)
{
    int notify;

    for (uint32_t i = 0; i < batch; i++)
        limit_net_fill(l, RING_GET_REQUEST(front, front->req_prod_pvt++), l->free_ids[i], size);
    l->result.requests += batch;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(front, notify);
    l->result.req_events += notify;
}

ALWAYS_INLINE void xen_net_back(struct limit *l, struct xen_net_back_ring *back)
{
    int more, notify;

    do {
        RING_IDX last = back->sring->req_prod;

        xen_rmb();
        if (RING_REQUEST_PROD_OVERFLOW(back, last))
            return;
        while (back->req_cons != last) {
            struct netif_tx_request request;

            RING_COPY_REQUEST(back, back->req_cons++, &request);
            limit_net_answer(l, &request, RING_GET_RESPONSE(back, back->rsp_prod_pvt++));
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(back, notify);
        l->result.rsp_events += notify;
        RING_FINAL_CHECK_FOR_REQUESTS(back, more);
    } while (more);
}

ALWAYS_INLINE void xen_net_reap(struct limit *l, struct xen_net_front_ring *front)
{
    uint32_t free = 0;
    int more;

    do {
        RING_IDX last = front->sring->rsp_prod;

        xen_rmb();
        while (front->rsp_cons != last) {
            const struct netif_tx_response *response = RING_GET_RESPONSE(front, front->rsp_cons++);

            limit_done(l, response->id, LIMIT_NET_SLOTS, response->status, &free);
        }
        RING_FINAL_CHECK_FOR_RESPONSES(front, more);
    } while (more);
}

NOINLINE void limit_net_xen(struct limit *l, uint32_t size, uint32_t batch, uint32_t rounds)
{
    struct xen_net_front_ring front;
    struct xen_net_back_ring back;

    XEN_BEGIN(&front, &back, (struct xen_net_sring *)l->net, &l->net_front, &l->net_back);
    for (uint32_t i = 0; i < rounds; i++) {
        xen_net_queue(l, &front, size, batch);
        xen_net_back(l, &back);
        xen_net_reap(l, &front);
    }
    XEN_END(&front, &back, &l->net_front, &l->net_back);
}
