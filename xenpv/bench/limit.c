/*
 * The C limit: what a block and a network ring cost when both ends are C on one core.
 *
 * A round trip is all that a real one has: build requests, push, test for a notification,
 * take, check, look each grant up, copy, respond, push, final check on both sides, reap.
 * There is no hypervisor, no store and no scheduler, so nothing in Python can be faster.
 * The buffers stay in the second-level cache, as those of the bench beside it do.
 * Rings are used by Xen's own io/ring.h where that is installed (limit_xen.c), else as it
 * tells, by the text here; the layouts are those of abi/decl.
 *
 * The block ring exists twice out of this text: bare, and with every shared access going
 * through abi/kernel/access.h while its hook is unset. What the seam costs is the difference.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernel/access.h"
#include "limit.h"

#define LIMIT_PAGE 4096u
#define LIMIT_PAGES 32u         /* granted; requests share them in turn */
#define LIMIT_REFS 512u         /* one frame of the grant table */
#define LIMIT_FIRST_REF 32u
#define LIMIT_DISK_SECTORS 1024u
#define LIMIT_SECTOR 512u
#define LIMIT_BLK_SLOTS 32u
#define LIMIT_NET_SLOTS 256u
#define LIMIT_BACKEND 0         /* domid */

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

struct limit_end {              /* what an end keeps for itself, of each ring */
    uint32_t prod_pvt, cons;
};

struct limit {
    struct blkif_sring *blk;
    struct netif_tx_sring *net;
    struct grant_entry_v1 *grants;
    uint8_t *pages;             /* the frontend's: frame n begins at n * LIMIT_PAGE */
    uint8_t *disk;
    struct limit_end blk_front, blk_back, net_front, net_back;
    uint32_t free_ids[LIMIT_NET_SLOTS];
    int16_t done[LIMIT_NET_SLOTS];
    uint32_t next_page, next_sector;
    struct machine machine;     /* of the hooked text: base and a hook that is NULL */
    struct limit_result result;
};

/* c is a constant NULL in the bare text, so that only the access itself is left of these. */
ALWAYS_INLINE uint32_t load32(struct call *c, const uint32_t *p)
{
    return c ? shared_load32(c, p) : __atomic_load_n(p, __ATOMIC_RELAXED);
}

ALWAYS_INLINE uint16_t load16(struct call *c, const uint16_t *p)
{
    return c ? shared_load16(c, p) : __atomic_load_n(p, __ATOMIC_RELAXED);
}

ALWAYS_INLINE void store32(struct call *c, uint32_t *p, uint32_t v)
{
    if (c)
        shared_store32(c, p, v);
    else
        __atomic_store_n(p, v, __ATOMIC_RELAXED);
}

/* A slot or a piece of data, reported as one access. */
ALWAYS_INLINE int begins(struct call *c, uint32_t kind, const void *p, size_t size)
{
    return c && access_begins(c, kind, p, (uint32_t)size);
}

/* Both halves of the notification test: did [old, new) pass the index that was asked for? */
ALWAYS_INLINE int limit_notify(uint32_t old, uint32_t new, uint32_t event)
{
    return new - event < new - old;
}

ALWAYS_INLINE uint8_t *limit_granted(const struct limit *l, struct call *c, uint32_t ref, int write)
{
    uint16_t flags;
    uint32_t frame;

    if (ref >= LIMIT_REFS)
        return NULL;
    flags = load16(c, &l->grants[ref].flags);
    if ((flags & GTF_type_mask) != GTF_permit_access || load16(c, &l->grants[ref].domid) != LIMIT_BACKEND ||
        (write && (flags & GTF_readonly)))
        return NULL;
    frame = load32(c, &l->grants[ref].frame);
    return frame < LIMIT_PAGES ? l->pages + (size_t)frame * LIMIT_PAGE : NULL;
}

ALWAYS_INLINE void limit_blk_fill(struct limit *l, struct blkif_request *request, uint64_t id,
                                  uint32_t segments)
{
    request->operation = BLKIF_OP_READ;
    request->nr_segments = (uint8_t)segments;
    request->handle = 0;
    request->id = id;
    request->sector_number = l->next_sector;
    l->next_sector = (l->next_sector + segments * 8) & (LIMIT_DISK_SECTORS - 1);
    if (l->next_sector + segments * 8 > LIMIT_DISK_SECTORS)
        l->next_sector = 0;
    for (uint32_t k = 0; k < segments; k++) {
        request->seg[k].gref = LIMIT_FIRST_REF + l->next_page;
        request->seg[k].first_sect = 0;
        request->seg[k].last_sect = 7;
        l->next_page = (l->next_page + 1) & (LIMIT_PAGES - 1);
    }
}

ALWAYS_INLINE void limit_blk_queue(struct limit *l, struct call *c, uint32_t segments,
                                   uint32_t batch)
{
    struct blkif_sring *s = l->blk;
    uint32_t old = load32(c, &s->req_prod), prod = l->blk_front.prod_pvt;

    for (uint32_t i = 0; i < batch; i++, prod++) {
        struct blkif_request *request = &s->ring[prod & (LIMIT_BLK_SLOTS - 1)].req;

        if (begins(c, ACCESS_WRITE, request, sizeof(*request)))
            return;
        limit_blk_fill(l, request, l->free_ids[i], segments);
    }
    l->result.requests += batch;
    barrier_write();
    store32(c, &s->req_prod, prod);
    l->blk_front.prod_pvt = prod;
    barrier_full();
    l->result.req_events += limit_notify(old, prod, load32(c, &s->req_event));
}

ALWAYS_INLINE int16_t limit_blk_serve(struct limit *l, struct call *c,
                                      const struct blkif_request *request)
{
    uint64_t sector = request->sector_number;

    if (request->operation != BLKIF_OP_READ)
        return BLKIF_RSP_EOPNOTSUPP;
    if (!request->nr_segments || request->nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST)
        return BLKIF_RSP_ERROR;
    for (uint32_t k = 0; k < request->nr_segments; k++) {
        const struct blkif_request_segment *segment = &request->seg[k];
        uint32_t sectors = segment->last_sect + 1u - segment->first_sect;
        uint8_t *page;

        if (segment->last_sect >= LIMIT_PAGE / LIMIT_SECTOR ||
            segment->first_sect > segment->last_sect ||
            sector >= LIMIT_DISK_SECTORS || sectors > LIMIT_DISK_SECTORS - sector)
            return BLKIF_RSP_ERROR;
        page = limit_granted(l, c, segment->gref, 1);
        if (!page || begins(c, ACCESS_WRITE, page, (size_t)sectors * LIMIT_SECTOR))
            return BLKIF_RSP_ERROR;
        memcpy(page + segment->first_sect * LIMIT_SECTOR, l->disk + sector * LIMIT_SECTOR,
               (size_t)sectors * LIMIT_SECTOR);
        l->result.bytes += (uint64_t)sectors * LIMIT_SECTOR;
        sector += sectors;
    }
    return BLKIF_RSP_OKAY;
}

/* c: of the hooked text, which has reported the slot already. */
ALWAYS_INLINE void limit_blk_answer(struct limit *l, struct call *c,
                                    const struct blkif_request *request,
                                    struct blkif_response *response)
{
    int16_t status = limit_blk_serve(l, c, request);

    if (begins(c, ACCESS_WRITE, response, sizeof(*response)))
        return;
    response->id = request->id;
    response->operation = request->operation;
    response->status = status;
}

/* What a frontend keeps of a response: its id is free again. */
ALWAYS_INLINE void limit_done(struct limit *l, uint64_t id, uint32_t slots, int16_t status,
                              uint32_t *free)
{
    if (id >= slots)
        return;
    l->done[id] = status;
    l->result.responses += status == 0;
    l->result.refused += status != 0;
    l->free_ids[(*free)++ & (slots - 1)] = (uint32_t)id;
}

ALWAYS_INLINE void limit_blk_back(struct limit *l, struct call *c)
{
    struct blkif_sring *s = l->blk;
    uint32_t cons = l->blk_back.cons, prod = l->blk_back.prod_pvt, old = prod, last;

    do {
        last = load32(c, &s->req_prod);
        barrier_read();
        if (last - prod > LIMIT_BLK_SLOTS)
            return;
        for (; cons != last; cons++, prod++) {
            struct blkif_request request;

            if (begins(c, ACCESS_READ, &s->ring[cons & (LIMIT_BLK_SLOTS - 1)], sizeof(request)))
                return;
            memcpy(&request, &s->ring[cons & (LIMIT_BLK_SLOTS - 1)].req, sizeof(request));
            limit_blk_answer(l, c, &request, &s->ring[prod & (LIMIT_BLK_SLOTS - 1)].rsp);
        }
        barrier_write();
        store32(c, &s->rsp_prod, prod);
        barrier_full();
        l->result.rsp_events += limit_notify(old, prod, load32(c, &s->rsp_event));
        old = prod;
        store32(c, &s->req_event, cons + 1);
        barrier_full();
    } while (load32(c, &s->req_prod) != cons);
    l->blk_back.cons = cons;
    l->blk_back.prod_pvt = prod;
}

ALWAYS_INLINE void limit_blk_reap(struct limit *l, struct call *c)
{
    struct blkif_sring *s = l->blk;
    uint32_t cons = l->blk_front.cons, last, free = 0;

    do {
        last = load32(c, &s->rsp_prod);
        barrier_read();
        for (; cons != last; cons++) {
            const struct blkif_response *response = &s->ring[cons & (LIMIT_BLK_SLOTS - 1)].rsp;

            if (begins(c, ACCESS_READ, response, sizeof(*response)))
                return;
            limit_done(l, response->id, LIMIT_BLK_SLOTS, response->status, &free);
        }
        store32(c, &s->rsp_event, cons + 1);
        barrier_full();
    } while (load32(c, &s->rsp_prod) != cons);
    l->blk_front.cons = cons;
}

ALWAYS_INLINE void limit_net_fill(struct limit *l, struct netif_tx_request *request, uint32_t id,
                                  uint32_t size)
{
    request->gref = LIMIT_FIRST_REF + l->next_page;
    request->offset = 0;
    request->flags = 0;
    request->id = (uint16_t)id;
    request->size = (uint16_t)size;
    l->next_page = (l->next_page + 1) & (LIMIT_PAGES - 1);
}

NOINLINE void limit_net_queue(struct limit *l, uint32_t size, uint32_t batch)
{
    struct call *const c = NULL;
    struct netif_tx_sring *s = l->net;
    uint32_t old = load32(c, &s->req_prod), prod = l->net_front.prod_pvt;

    for (uint32_t i = 0; i < batch; i++, prod++)
        limit_net_fill(l, &s->ring[prod & (LIMIT_NET_SLOTS - 1)].req, l->free_ids[i], size);
    l->result.requests += batch;
    barrier_write();
    store32(c, &s->req_prod, prod);
    l->net_front.prod_pvt = prod;
    barrier_full();
    l->result.req_events += limit_notify(old, prod, load32(c, &s->req_event));
}

ALWAYS_INLINE int16_t limit_net_serve(struct limit *l, const struct netif_tx_request *request)
{
    struct call *const c = NULL;
    uint8_t *page;

    if (request->flags || request->size < 14 || request->offset + request->size > LIMIT_PAGE)
        return NETIF_RSP_ERROR;
    page = limit_granted(l, c, request->gref, 0);
    if (!page)
        return NETIF_RSP_ERROR;
    /* Where a frame goes: the backend's receive buffers, used in turn. */
    memcpy(l->disk + (size_t)l->next_sector * LIMIT_SECTOR, page + request->offset, request->size);
    l->next_sector = (l->next_sector + 4) & (LIMIT_PAGES * 8 - 1);
    l->result.bytes += request->size;
    return NETIF_RSP_OKAY;
}

ALWAYS_INLINE void limit_net_answer(struct limit *l, const struct netif_tx_request *request,
                                    struct netif_tx_response *response)
{
    int16_t status = limit_net_serve(l, request);

    response->id = request->id;
    response->status = status;
}

NOINLINE void limit_net_back(struct limit *l)
{
    struct call *const c = NULL;
    struct netif_tx_sring *s = l->net;
    uint32_t cons = l->net_back.cons, prod = l->net_back.prod_pvt, old = prod, last;

    do {
        last = load32(c, &s->req_prod);
        barrier_read();
        if (last - prod > LIMIT_NET_SLOTS)
            return;
        for (; cons != last; cons++, prod++) {
            struct netif_tx_request request;

            memcpy(&request, &s->ring[cons & (LIMIT_NET_SLOTS - 1)].req, sizeof(request));
            limit_net_answer(l, &request, &s->ring[prod & (LIMIT_NET_SLOTS - 1)].rsp);
        }
        barrier_write();
        store32(c, &s->rsp_prod, prod);
        barrier_full();
        l->result.rsp_events += limit_notify(old, prod, load32(c, &s->rsp_event));
        old = prod;
        store32(c, &s->req_event, cons + 1);
        barrier_full();
    } while (load32(c, &s->req_prod) != cons);
    l->net_back.cons = cons;
    l->net_back.prod_pvt = prod;
}

NOINLINE void limit_net_reap(struct limit *l)
{
    struct call *const c = NULL;
    struct netif_tx_sring *s = l->net;
    uint32_t cons = l->net_front.cons, last, free = 0;

    do {
        last = load32(c, &s->rsp_prod);
        barrier_read();
        for (; cons != last; cons++) {
            const struct netif_tx_response *response = &s->ring[cons & (LIMIT_NET_SLOTS - 1)].rsp;

            limit_done(l, response->id, LIMIT_NET_SLOTS, response->status, &free);
        }
        store32(c, &s->rsp_event, cons + 1);
        barrier_full();
    } while (load32(c, &s->rsp_prod) != cons);
    l->net_front.cons = cons;
}

ALWAYS_INLINE void limit_blk_run(struct limit *l, struct call *c, uint32_t segments, uint32_t batch,
                                 uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++) {
        limit_blk_queue(l, c, segments, batch);
        limit_blk_back(l, c);
        limit_blk_reap(l, c);
    }
}

NOINLINE void limit_blk_bare(struct limit *l, uint32_t segments, uint32_t batch, uint32_t rounds)
{
    limit_blk_run(l, NULL, segments, batch, rounds);
}

NOINLINE void limit_blk_hooked(struct limit *l, uint32_t segments, uint32_t batch, uint32_t rounds)
{
    struct call c = call_begin(&l->machine, LIMIT_BACKEND, 0);

    limit_blk_run(l, &c, segments, batch, rounds);
}

NOINLINE void limit_net_own(struct limit *l, uint32_t size, uint32_t batch, uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++) {
        limit_net_queue(l, size, batch);
        limit_net_back(l);
        limit_net_reap(l);
    }
}

#if __has_include(<xen/io/ring.h>)
#include "limit_xen.c"
#define HAVE_RING_H 1
#else
#define HAVE_RING_H 0
#define limit_blk_xen limit_blk_bare
#define limit_net_xen limit_net_own
#endif

static double limit_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void limit_begin(struct limit *l)
{
    memset(&l->result, 0, sizeof(l->result));
    for (uint32_t i = 0; i < LIMIT_NET_SLOTS; i++)
        l->free_ids[i] = i;
    l->next_page = l->next_sector = 0;
}

int limit_has_ring_h(void) { return HAVE_RING_H; }

int limit_blk(limit *l, uint32_t segments, uint32_t batch, uint32_t rounds, int text,
              struct limit_result *result)
{
    double start;

    if (!segments || segments > BLKIF_MAX_SEGMENTS_PER_REQUEST || !batch || batch > LIMIT_BLK_SLOTS)
        return -EINVAL;
    limit_begin(l);
    start = limit_clock();
    (text == LIMIT_XEN ? limit_blk_xen : text == LIMIT_HOOKED ? limit_blk_hooked : limit_blk_bare)(
        l, segments, batch, rounds);
    l->result.ns = limit_clock() - start;
    *result = l->result;
    return 0;
}

int limit_net(limit *l, uint32_t size, uint32_t batch, uint32_t rounds, int text,
              struct limit_result *result)
{
    double start;

    if (size < 14 || size > 2048 || !batch || batch > LIMIT_NET_SLOTS)
        return -EINVAL;
    limit_begin(l);
    start = limit_clock();
    (text == LIMIT_XEN ? limit_net_xen : limit_net_own)(l, size, batch, rounds);
    l->result.ns = limit_clock() - start;
    *result = l->result;
    return 0;
}

void limit_ring(limit *l, int net, void *page)
{
    memcpy(page, net ? (void *)l->net : (void *)l->blk, LIMIT_PAGE);
}

/* Take the grant of one page back: requests that name it must be refused from now on. */
int limit_revoke(limit *l, uint32_t page)
{
    if (page >= LIMIT_PAGES)
        return -EINVAL;
    l->grants[LIMIT_FIRST_REF + page].flags = GTF_invalid;
    return 0;
}

void limit_free(limit *l)
{
    if (!l)
        return;
    free(l->blk);
    free(l->net);
    free(l->grants);
    free(l->pages);
    free(l->disk);
    free(l);
}

static void *limit_alloc(size_t size)
{
    void *memory;

    size = (size + LIMIT_PAGE - 1) / LIMIT_PAGE * LIMIT_PAGE;
    memory = aligned_alloc(LIMIT_PAGE, size);
    if (memory)
        memset(memory, 0, size);        /* touched: no page fault falls into a run */
    return memory;
}

limit *limit_new(void)
{
    struct limit *l = calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    l->blk = limit_alloc(sizeof(*l->blk));
    l->net = limit_alloc(sizeof(*l->net));
    l->grants = limit_alloc(LIMIT_REFS * sizeof(*l->grants));
    l->pages = limit_alloc((size_t)LIMIT_PAGES * LIMIT_PAGE);
    l->disk = limit_alloc((size_t)LIMIT_DISK_SECTORS * LIMIT_SECTOR);
    if (!l->blk || !l->net || !l->grants || !l->pages || !l->disk) {
        limit_free(l);
        return NULL;
    }
    l->blk->req_event = l->blk->rsp_event = l->net->req_event = l->net->rsp_event = 1;
    for (uint32_t page = 0; page < LIMIT_PAGES; page++)
        l->grants[LIMIT_FIRST_REF + page] = (struct grant_entry_v1){
            .flags = GTF_permit_access, .domid = LIMIT_BACKEND, .frame = page,
        };
    return l;
}
