/* A block frontend in C: a request at a time of up to eleven pages, the others wait in a list. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

#define RING_SIZE 32u
#define SECTOR 512u
#define PAGES_MAX BLKIF_MAX_SEGMENTS_PER_REQUEST

struct wish {
    struct wish *next;
    uint64_t id, sector;
    unsigned operation;
    size_t size;
    uint8_t data[];
};

struct blkfront {
    xenpv_end *end;
    struct blkif_sring *sring;
    xenpv_ref ring_ref, refs[PAGES_MAX];
    uint8_t *pages;
    int port;
    RING_IDX req_prod_pvt, rsp_cons;
    struct wish *first;         /* it is under way if `busy` */
    int busy, connected;
};

static RING_IDX load(const RING_IDX *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store(RING_IDX *p, RING_IDX value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static void end_first(struct blkfront *front, int okay)
{
    struct wish *wish = front->first;
    int reads = wish->operation == BLKIF_OP_READ;

    front->first = wish->next;
    front->busy = 0;
    if (okay && reads)
        memcpy(wish->data, front->pages, wish->size);
    xenpv_complete(front->end, wish->id, okay, reads ? wish->data : NULL, reads ? wish->size : 0);
    free(wish);
}

static void start(struct blkfront *front)
{
    struct blkif_sring *sring = front->sring;
    RING_IDX old = front->req_prod_pvt, new = old + 1;
    struct wish *wish = front->first;
    struct blkif_request *request;

    if (!wish || front->busy || !front->connected)
        return;
    request = &sring->ring[old % RING_SIZE].req;
    memset(request, 0, sizeof(*request));
    request->operation = (uint8_t)wish->operation;
    request->id = wish->id;
    request->sector_number = wish->sector;
    if (wish->operation == BLKIF_OP_WRITE)
        memcpy(front->pages, wish->data, wish->size);
    for (size_t at = 0; wish->operation <= BLKIF_OP_WRITE && at < wish->size;
         at += XENPV_PAGE_SIZE) {
        size_t left = (wish->size - at) / SECTOR;
        struct blkif_request_segment segment = { front->refs[at / XENPV_PAGE_SIZE], 0,
                                                 (uint8_t)(left < 8 ? left - 1 : 7) };

        request->seg[request->nr_segments++] = segment;
    }
    front->busy = 1;
    front->req_prod_pvt = new;
    store(&sring->req_prod, new);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((RING_IDX)(new - load(&sring->req_event)) < (RING_IDX)(new - old))
        xenpv_notify(front->end, (xenpv_port)front->port);
}

static void event(xenpv_end *end, void *context)
{
    struct blkfront *front = context;
    RING_IDX prod;

    do {
        prod = load(&front->sring->rsp_prod);
        if ((RING_IDX)(prod - front->rsp_cons) > (RING_IDX)(front->req_prod_pvt - front->rsp_cons)) {
            xenpv_fatal(end, "rsp_prod runs past the requests");
            return;
        }
        while (front->rsp_cons != prod) {
            struct blkif_response response = front->sring->ring[front->rsp_cons++ % RING_SIZE].rsp;

            if (!front->busy || response.id != front->first->id) {
                xenpv_fatal(end, "no request has id %" PRIu64, response.id);
                return;
            }
            end_first(front, response.status == BLKIF_RSP_OKAY);
            start(front);
        }
        store(&front->sring->rsp_event, front->rsp_cons + 1);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    } while (load(&front->sring->rsp_prod) != front->rsp_cons);
}

static void submit(xenpv_end *end, uint64_t id, unsigned operation, uint64_t sector,
                   const void *data, size_t size)
{
    struct blkfront *front = xenpv_data(end);
    struct wish *wish, **at;

    wish = size <= PAGES_MAX * XENPV_PAGE_SIZE ? malloc(sizeof(*wish) + size) : NULL;
    if (!wish) {
        xenpv_complete(end, id, 0, NULL, 0);
        return;
    }
    *wish = (struct wish){ NULL, id, sector, operation, size };
    if (data)
        memcpy(wish->data, data, size);
    for (at = &front->first; *at; at = &(*at)->next)
        ;
    *at = wish;
    start(front);
}

static int probe(xenpv_end *end)
{
    struct blkfront *front = calloc(1, sizeof(*front));

    if (!front)
        return -ENOMEM;
    xenpv_set_data(end, front);
    front->end = end;
    front->pages = xenpv_alloc_pages(end, PAGES_MAX);
    front->sring = xenpv_alloc_pages(end, 1);
    if (!front->pages || !front->sring)
        return -ENOMEM;
    memset(front->sring, 0, XENPV_PAGE_SIZE);
    memset(front->pages, 0, PAGES_MAX * XENPV_PAGE_SIZE);
    front->sring->req_event = front->sring->rsp_event = 1;
    return 0;
}

static int connect(struct blkfront *front)
{
    xenpv_end *end = front->end;
    int tx, failed;

    front->ring_ref = (xenpv_ref)xenpv_grant_access(end, front->sring, 0);
    for (unsigned i = 0; i < PAGES_MAX; i++)
        front->refs[i] =
            (xenpv_ref)xenpv_grant_access(end, front->pages + i * XENPV_PAGE_SIZE, 0);
    front->port = xenpv_alloc_unbound(end, event, front);
    if (front->port < 0)
        return front->port;
    do {
        tx = xenpv_transaction_start(end);
        if (tx < 0)
            return tx;
        xenpv_printf(end, (unsigned)tx, "ring-ref", "%" PRIu32, front->ring_ref);
        xenpv_printf(end, (unsigned)tx, "event-channel", "%d", front->port);
        xenpv_write(end, (unsigned)tx, "protocol", "x86_64-abi");
        failed = xenpv_transaction_end(end, (unsigned)tx, 0);
    } while (failed == -EAGAIN);
    return failed ? failed : xenpv_switch_state(end, XenbusStateInitialised);
}

static int backend_changed(xenpv_end *end, int state)
{
    struct blkfront *front = xenpv_data(end);

    switch (state) {
    case XenbusStateInitWait:
        return front->port ? 0 : connect(front);
    case XenbusStateConnected:
        if (!front->connected) {
            front->connected = 1;
            xenpv_switch_state(end, XenbusStateConnected);
            start(front);
        }
        return 0;
    case XenbusStateClosing:
        front->connected = 0;
        return xenpv_switch_state(end, XenbusStateClosed);
    default:
        return 0;
    }
}

static void removed(xenpv_end *end)
{
    struct blkfront *front = xenpv_data(end);

    while (front->first)
        end_first(front, 0);
    if (front->port > 0)
        xenpv_close(end, (xenpv_port)front->port);
    for (unsigned i = 0; i < PAGES_MAX && front->ring_ref; i++)
        xenpv_end_access(end, front->refs[i]);
    if (front->ring_ref)
        xenpv_end_access(end, front->ring_ref);
    xenpv_free_pages(end, front->sring);
    xenpv_free_pages(end, front->pages);
    free(front);
}

const struct xenpv_driver xenpv_driver = {
    .name = "blkfront",
    .probe = probe,
    .otherend_changed = backend_changed,
    .remove = removed,
    .submit = submit,
};
