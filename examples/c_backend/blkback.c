/*
 * A block backend in C: one ring of one page, the x86_64 layout, data by grant copy.
 *
 *     python examples/own_c_backend.py
 *
 * Two mistakes can be planted: -DDOUBLE_FETCH looks at a request where the frontend can still
 * write it, -DLOST_WAKEUP sleeps without a last look at the ring. Without them it passes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

#define RING_SIZE 32u
#define SECTOR 512u

struct blkback {
    xenpv_end *end;
    struct blkif_sring *sring;      /* the frontend's page; NULL while not connected */
    xenpv_port port;
    RING_IDX req_cons, rsp_prod_pvt;
    uint8_t bounce[XENPV_PAGE_SIZE];
};

/* What another end stores at any moment is loaded once, with what comes after it after it. */
static RING_IDX load(const RING_IDX *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store(RING_IDX *p, RING_IDX value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* The sectors of a segment; 0: they are none of its page. */
static unsigned sectors_of(const struct blkif_request_segment *segment)
{
    if (segment->first_sect > segment->last_sect ||
        segment->last_sect >= XENPV_PAGE_SIZE / SECTOR)
        return 0;
    return segment->last_sect - segment->first_sect + 1u;
}

static int move(struct blkback *back, int writes, uint64_t sector,
                const struct blkif_request_segment *segment)
{
    unsigned offset = segment->first_sect * SECTOR, size = sectors_of(segment) * SECTOR;
    int failed;

    if (writes) {
        failed = xenpv_copy_from(back->end, segment->gref, offset, back->bounce, size);
        return failed ? failed : xenpv_image_write(back->end, sector, back->bounce, size);
    }
    failed = xenpv_image_read(back->end, sector, back->bounce, size);
    return failed ? failed : xenpv_copy_to(back->end, segment->gref, offset, back->bounce, size);
}

/* All of a request is checked before anything of it is done. */
static int is_valid(const struct blkback *back, const struct blkif_request *request)
{
    uint64_t sectors = xenpv_image_sectors(back->end), count = 0;

    if (request->nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST)
        return 0;
    for (unsigned i = 0; i < request->nr_segments; i++) {
        if (!sectors_of(&request->seg[i]))
            return 0;
        count += sectors_of(&request->seg[i]);
    }
    if (request->operation != BLKIF_OP_READ && count && !xenpv_image_writable(back->end))
        return 0;
    return request->sector_number <= sectors && count <= sectors - request->sector_number;
}

/* A FLUSH may have data, which is written after it. */
static int16_t serve(struct blkback *back, const struct blkif_request *request)
{
    uint64_t sector = request->sector_number;
    int writes = request->operation != BLKIF_OP_READ;

    if (request->operation > BLKIF_OP_WRITE && request->operation != BLKIF_OP_FLUSH_DISKCACHE)
        return BLKIF_RSP_EOPNOTSUPP;
    if (!is_valid(back, request))
        return BLKIF_RSP_ERROR;
    if (request->operation == BLKIF_OP_FLUSH_DISKCACHE) {
        if (xenpv_image_flush(back->end))
            return BLKIF_RSP_ERROR;
    } else if (!request->nr_segments) {
        return BLKIF_RSP_ERROR;
    }
    for (unsigned i = 0; i < request->nr_segments; i++) {
        struct blkif_request_segment segment = request->seg[i];

        if (move(back, writes, sector, &segment))
            return BLKIF_RSP_ERROR;
        sector += sectors_of(&segment);
    }
    return BLKIF_RSP_OKAY;
}

/* make_response: fill a slot, publish it, and say so if the frontend asked. */
static void respond(struct blkback *back, uint64_t id, uint8_t operation, int16_t status)
{
    struct blkif_sring *sring = back->sring;
    struct blkif_response *response = &sring->ring[back->rsp_prod_pvt % RING_SIZE].rsp;
    RING_IDX old = back->rsp_prod_pvt, new = old + 1;

    response->id = id;
    response->operation = operation;
    response->status = status;
    back->rsp_prod_pvt = new;
    store(&sring->rsp_prod, new);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((RING_IDX)(new - load(&sring->rsp_event)) < (RING_IDX)(new - old))
        xenpv_notify(back->end, back->port);
}

/* All requests that the frontend has published; -1 if its index cannot be. */
static int serve_all(struct blkback *back)
{
    RING_IDX prod = load(&back->sring->req_prod);

    if ((RING_IDX)(prod - back->rsp_prod_pvt) > RING_SIZE)
        return -1;
    while (back->req_cons != prod) {
        const struct blkif_request *request =
            &back->sring->ring[back->req_cons++ % RING_SIZE].req;
#ifndef DOUBLE_FETCH
        struct blkif_request copy;

        memcpy(&copy, request, sizeof(copy));
        request = &copy;
#endif
        uint64_t id = request->id;
        uint8_t operation = request->operation;

        respond(back, id, operation, serve(back, request));
    }
    return 0;
}

static void event(xenpv_end *end, void *context)
{
    struct blkback *back = context;
    int more = 0;

    do {
        if (serve_all(back)) {
            xenpv_fatal(end, "req_prod runs past the ring");
            return;
        }
        store(&back->sring->req_event, back->req_cons + 1);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
#ifndef LOST_WAKEUP
        more = load(&back->sring->req_prod) != back->req_cons;      /* RING_FINAL_CHECK */
#endif
    } while (more);
}

static void disconnect(struct blkback *back)
{
    if (back->port)
        xenpv_close(back->end, back->port);
    if (back->sring)
        xenpv_unmap(back->end, back->sring);
    back->port = 0;
    back->sring = NULL;
}

static int connect(struct blkback *back)
{
    xenpv_end *end = back->end;
    char protocol[32] = "x86_64-abi";
    xenpv_ref ref;
    xenpv_port remote;
    void *page;
    int port;

    xenpv_gather(end, 0, "protocol", "%31s", protocol);
    if (strcmp(protocol, "x86_64-abi") || xenpv_gather(end, 0, "ring-ref", "%" SCNu32, &ref) != 1 ||
        xenpv_gather(end, 0, "event-channel", "%" SCNu32, &remote) != 1)
        return -EINVAL;
    if (xenpv_map(end, &ref, 1, 0, &page))
        return -EFAULT;
    back->sring = page;
    back->req_cons = back->rsp_prod_pvt = load(&back->sring->rsp_prod);
    port = xenpv_bind(end, remote, event, back);
    if (port < 0) {
        disconnect(back);
        return port;
    }
    back->port = (xenpv_port)port;
    xenpv_printf(end, 0, "sectors", "%" PRIu64, xenpv_image_sectors(end));
    xenpv_printf(end, 0, "sector-size", "%u", SECTOR);
    xenpv_printf(end, 0, "info", "%d", xenpv_image_writable(end) ? 0 : VDISK_READONLY);
    return xenpv_switch_state(end, XenbusStateConnected);
}

static int probe(xenpv_end *end)
{
    struct blkback *back = calloc(1, sizeof(*back));

    if (!back)
        return -ENOMEM;
    back->end = end;
    xenpv_set_data(end, back);
    xenpv_write(end, 0, "feature-flush-cache", "1");
    return xenpv_switch_state(end, XenbusStateInitWait);
}

static int frontend_changed(xenpv_end *end, int state)
{
    struct blkback *back = xenpv_data(end);

    switch (state) {
    case XenbusStateInitialising:       /* the frontend begins, perhaps again */
        disconnect(back);
        return xenpv_switch_state(end, XenbusStateInitWait);
    case XenbusStateInitialised:
    case XenbusStateConnected:
        return back->sring ? 0 : connect(back);
    case XenbusStateClosing:
        return xenpv_switch_state(end, XenbusStateClosing);
    case XenbusStateClosed:
    case XenbusStateUnknown:
        disconnect(back);
        return xenpv_switch_state(end, XenbusStateClosed);
    default:
        return 0;
    }
}

static void removed(xenpv_end *end)
{
    struct blkback *back = xenpv_data(end);

    if (back)
        disconnect(back);
    free(back);
}

const struct xenpv_driver xenpv_driver = {
    .name = "blkback",
    .probe = probe,
    .otherend_changed = frontend_changed,
    .remove = removed,
};
