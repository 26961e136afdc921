/*
 * Shared rings (io/ring.h) and byte streams (io/xs_wire.h, io/console.h), in batches.
 *
 * Indices are free-running u32; slot = index & (size - 1). Slots are copied once to private
 * memory before anybody looks at them. A ring's pages need not be adjacent in the arena, so
 * a slot of a multi-page ring may lie in two frames. A handle is re-validated against the
 * domain's p2m whenever that changed: an unmapped or revoked page is EFAULT, not a stray write.
 */
#include "domain.h"

#define RING_HEADER 64u
#define RING_MAX_PAGES 16u         /* at most 8,192 entries: a count of them fits into 16 bits */
#define REQ_PROD 0
#define REQ_EVENT 4
#define RSP_PROD 8
#define RSP_EVENT 12

struct ring {
    domain *d;
    uint8_t *pages[RING_MAX_PAGES];
    uint32_t pfns[RING_MAX_PAGES];
    uint32_t nr_pages, generation;
    uint32_t size, entry_size, rsp_size;
    uint32_t prod_pvt;      /* req_prod_pvt of a front, rsp_prod_pvt of a back */
    uint32_t cons;          /* rsp_cons of a front, req_cons of a back */
};

typedef struct ring ring;

static int ring_validate(ring *r)
{
    for (uint32_t i = 0; i < r->nr_pages; i++) {
        r->pages[i] = page_address(r->d, r->pfns[i], 1);
        if (!r->pages[i])
            return -EFAULT;
    }
    r->generation = r->d->generation;
    return 0;
}

static inline int ring_enter(ring *r)
{
    KERNEL_ENTER(r->d->m);
    if (__builtin_expect(r->generation != r->d->generation, 0))
        return ring_validate(r);
    return 0;
}

static ring *ring_attach(domain *d, const uint32_t *pfns, uint32_t nr_pages, uint32_t entry_size,
                         uint32_t rsp_size)
{
    ring *r;

    if (!nr_pages || nr_pages > RING_MAX_PAGES || !entry_size || rsp_size > entry_size)
        return NULL;
    r = calloc(1, sizeof(*r));
    if (!r)
        return NULL;
    r->d = d;
    r->nr_pages = nr_pages;
    r->entry_size = entry_size;
    r->rsp_size = rsp_size;
    memcpy(r->pfns, pfns, nr_pages * sizeof(*pfns));
    /* __RING_SIZE: the entries that fit, rounded down to a power of two. */
    r->size = (nr_pages * FRAME_SIZE - RING_HEADER) / entry_size;
    while (r->size & (r->size - 1))
        r->size &= r->size - 1;
    if (!r->size || ring_validate(r)) {
        free(r);
        return NULL;
    }
    return r;
}

static void ring_detach(ring *r) { free(r); }
static uint32_t ring_size(ring *r) { return r->size; }
static uint32_t ring_prod_pvt(ring *r) { return r->prod_pvt; }
static uint32_t ring_cons(ring *r) { return r->cons; }

static void ring_seek(ring *r, uint32_t prod_pvt, uint32_t cons)
{
    r->prod_pvt = prod_pvt;
    r->cons = cons;
}

/* SHARED_RING_INIT: producers 0, events 1, the rest of the header zero. */
static int ring_init(ring *r)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    int error = ring_enter(r);

    if (error)
        return error;
    shared_clear(&c, r->pages[0], RING_HEADER);
    shared_store32(&c, r->pages[0] + REQ_EVENT, 1);
    shared_store32(&c, r->pages[0] + RSP_EVENT, 1);
    r->prod_pvt = r->cons = 0;
    return (int)call_end(&c, 0);
}

/* BACK_RING_ATTACH: go on where the responses ended; more than a ring of requests is refused. */
static int ring_resume(ring *r)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    uint32_t rsp_prod, req_prod;
    int error = ring_enter(r);

    if (error)
        return error;
    rsp_prod = shared_load32(&c, r->pages[0] + RSP_PROD);
    req_prod = shared_load32(&c, r->pages[0] + REQ_PROD);
    if (!c.aborted && req_prod - rsp_prod > r->size)
        return KERNEL_E_OVERFLOW;
    r->prod_pvt = r->cons = rsp_prod;
    return (int)call_end(&c, 0);
}

/* Where a slot's bytes lie: one piece, or two when it crosses a page. */
static inline uint32_t slot_split(const ring *r, uint32_t index, uint32_t n, uint8_t **first,
                                  uint8_t **second)
{
    uint32_t at = RING_HEADER + (index & (r->size - 1)) * r->entry_size;
    uint32_t page = at >> FRAME_SHIFT, offset = at & (FRAME_SIZE - 1);

    *first = r->pages[page] + offset;
    if (__builtin_expect(offset + n <= FRAME_SIZE, 1))
        return n;
    *second = r->pages[page + 1];
    return FRAME_SIZE - offset;
}

static inline void slot_read(struct call *c, const ring *r, uint32_t index, uint8_t *out,
                             uint32_t n)
{
    uint8_t *first, *second = NULL;
    uint32_t head = slot_split(r, index, n, &first, &second);

    shared_copy_out(c, out, first, head);
    if (second)
        shared_copy_out(c, out + head, second, n - head);
}

static inline void slot_write(struct call *c, const ring *r, uint32_t index, const uint8_t *data,
                              uint32_t n)
{
    uint8_t *first, *second = NULL;
    uint32_t head = slot_split(r, index, n, &first, &second);

    shared_copy_in(c, first, data, head);
    if (second)
        shared_copy_in(c, second, data + head, n - head);
}

/* RING_PUSH_*_AND_CHECK_NOTIFY: publish, then look whether the peer asked for this index. */
static inline int ring_publish(struct call *c, ring *r, uint32_t prod_at, uint32_t event_at,
                               uint32_t n)
{
    uint32_t old = r->prod_pvt, new = old + n, event;

    barrier_write();
    shared_store32(c, r->pages[0] + prod_at, new);
    if (c->aborted)
        return 0;
    r->prod_pvt = new;
    barrier_full();
    event = shared_load32(c, r->pages[0] + event_at);
    return new - event < new - old;
}

static uint32_t front_inflight(ring *r) { return r->prod_pvt - r->cons; }
static uint32_t front_free(ring *r) { return r->size - (r->prod_pvt - r->cons); }

/* 1: notify the backend. ENOSPC: fewer than n slots are free. */
static int64_t front_push(ring *r, const void *requests, uint32_t n, uint32_t req_size)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    const uint8_t *request = requests;
    int notify, error = ring_enter(r);

    if (error)
        return error;
    if (req_size > r->entry_size)
        return -EINVAL;
    if (n > front_free(r))
        return -ENOSPC;
    if (!n)
        return 0;
    for (uint32_t i = 0; i < n && !c.aborted; i++, request += req_size)
        slot_write(&c, r, r->prod_pvt + i, request, req_size);
    if (c.aborted)
        return KERNEL_E_ABORTED;
    notify = ring_publish(&c, r, REQ_PROD, REQ_EVENT, n);
    return call_end(&c, notify);
}

/* Responses copied out, at most max. */
static int64_t front_take(ring *r, void *responses, uint32_t max)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    uint8_t *response = responses;
    uint32_t prod, n;
    int error = ring_enter(r);

    if (error)
        return error;
    prod = shared_load32(&c, r->pages[0] + RSP_PROD);
    barrier_read();
    n = prod - r->cons;
    if (c.aborted)
        return KERNEL_E_ABORTED;
    /* RING_RESPONSE_PROD_OVERFLOW bounds by the ring; no more than is in flight is stricter. */
    if (n > front_inflight(r))
        return KERNEL_E_OVERFLOW;
    if (n > max)
        n = max;
    for (uint32_t i = 0; i < n && !c.aborted; i++, response += r->rsp_size)
        slot_read(&c, r, r->cons + i, response, r->rsp_size);
    if (c.aborted)
        return KERNEL_E_ABORTED;
    r->cons += n;
    return n;
}

/* RING_FINAL_CHECK_FOR_*: ask for an event at the next index, then look once more. */
static inline int64_t ring_final_check(ring *r, uint32_t prod_at, uint32_t event_at)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    int more, error = ring_enter(r);

    if (error)
        return error;
    if (shared_load32(&c, r->pages[0] + prod_at) != r->cons)
        return call_end(&c, 1);
    shared_store32(&c, r->pages[0] + event_at, r->cons + 1);
    barrier_full();
    more = shared_load32(&c, r->pages[0] + prod_at) != r->cons;
    return call_end(&c, more);
}

static int64_t front_final_check(ring *r)
{
    return ring_final_check(r, RSP_PROD, RSP_EVENT);
}

static int64_t back_final_check(ring *r)
{
    return ring_final_check(r, REQ_PROD, REQ_EVENT);
}

/* front_take and its final check: the number of responses, and bit 16: there are more. */
static int64_t front_reap(ring *r, void *responses, uint32_t max)
{
    int64_t n = front_take(r, responses, max), more;

    if (n < 0)
        return n;
    more = front_final_check(r);
    return more < 0 ? more : n | more << 16;
}

static uint32_t back_inflight(ring *r) { return r->cons - r->prod_pvt; }

/*
 * Requests copied out, at most max and never more than there are slots to answer in. The
 * producer must not be more than a ring ahead of `from`.
 */
static inline int64_t take_requests(ring *r, void *requests, uint32_t max, uint32_t req_size,
                                    uint32_t from)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    uint8_t *request = requests;
    uint32_t prod, n, room;
    int error = ring_enter(r);

    if (error)
        return error;
    if (req_size > r->entry_size)
        return -EINVAL;
    prod = shared_load32(&c, r->pages[0] + REQ_PROD);
    barrier_read();
    if (c.aborted)
        return KERNEL_E_ABORTED;
    if (prod - from > r->size)
        return KERNEL_E_OVERFLOW;
    n = prod - r->cons;
    if (n > r->size)                        /* the producer moved behind what was consumed */
        return KERNEL_E_OVERFLOW;
    room = r->size - back_inflight(r);
    if (n > room)
        n = room;
    if (n > max)
        n = max;
    for (uint32_t i = 0; i < n && !c.aborted; i++, request += req_size)
        slot_read(&c, r, r->cons + i, request, req_size);
    if (c.aborted)
        return KERNEL_E_ABORTED;
    r->cons += n;
    return n;
}

/* RING_REQUEST_PROD_OVERFLOW: a ring ahead of the responses. */
static int64_t back_take(ring *r, void *requests, uint32_t max, uint32_t req_size)
{
    return take_requests(r, requests, max, req_size, r->prod_pvt);
}

/*
 * n responses of rsp_size bytes each, packed; 1: notify the frontend.
 * The rest of each entry is zeroed: a response shows nothing of the backend (XSA-216).
 */
static int64_t back_push(ring *r, const void *responses, uint32_t n)
{
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    const uint8_t *response = responses;
    uint8_t entry[256];
    int notify, error = ring_enter(r);

    if (error)
        return error;
    if (n > back_inflight(r))
        return -ENOSPC;
    if (r->entry_size > sizeof(entry))
        return -EINVAL;
    if (!n)
        return 0;
    memset(entry + r->rsp_size, 0, r->entry_size - r->rsp_size);
    for (uint32_t i = 0; i < n && !c.aborted; i++, response += r->rsp_size) {
        memcpy(entry, response, r->rsp_size);
        slot_write(&c, r, r->prod_pvt + i, entry, r->entry_size);
    }
    if (c.aborted)
        return KERNEL_E_ABORTED;
    notify = ring_publish(&c, r, RSP_PROD, RSP_EVENT, n);
    return call_end(&c, notify);
}

/*
 * A byte stream of one page: `size` bytes (a power of two) at `base`, free-running u32
 * indices at cons_offset and prod_offset. E_OVERFLOW: the peer's index is out of bounds.
 */
static uint8_t *stream_page(domain *d, uint32_t pfn, uint32_t base, uint32_t size,
                            uint32_t cons_offset, uint32_t prod_offset)
{
    if (!size || (size & (size - 1)) || size > FRAME_SIZE || base > FRAME_SIZE - size ||
        cons_offset > FRAME_SIZE - 4 || prod_offset > FRAME_SIZE - 4 ||
        (cons_offset | prod_offset) % 4)
        return NULL;
    return page_address(d, pfn, 1);
}

static int64_t stream_put(domain *d, uint32_t pfn, uint32_t base, uint32_t size,
                          uint32_t cons_offset, uint32_t prod_offset, const void *data, uint32_t n)
{
    struct call c = call_begin(d->m, d->domid, 0);
    const uint8_t *from = data;
    uint32_t cons, prod, room, head, at;
    uint8_t *page;

    KERNEL_ENTER(d->m);
    page = stream_page(d, pfn, base, size, cons_offset, prod_offset);
    if (!page)
        return -EFAULT;
    cons = shared_load32(&c, page + cons_offset);
    prod = shared_load32(&c, page + prod_offset);
    barrier_full();                 /* the consumer's reads end before these bytes are reused */
    if (c.aborted)
        return KERNEL_E_ABORTED;
    if (prod - cons > size)
        return KERNEL_E_OVERFLOW;
    room = size - (prod - cons);
    if (n > room)
        n = room;
    if (!n)
        return 0;
    at = prod & (size - 1);
    head = size - at < n ? size - at : n;
    shared_copy_in(&c, page + base + at, from, head);
    if (head < n)
        shared_copy_in(&c, page + base, from + head, n - head);
    barrier_write();
    shared_store32(&c, page + prod_offset, prod + n);
    barrier_full();
    return call_end(&c, n);
}

static int64_t stream_get(domain *d, uint32_t pfn, uint32_t base, uint32_t size,
                          uint32_t cons_offset, uint32_t prod_offset, void *out, uint32_t max)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *to = out;
    uint32_t cons, prod, n, head, at;
    uint8_t *page;

    KERNEL_ENTER(d->m);
    page = stream_page(d, pfn, base, size, cons_offset, prod_offset);
    if (!page)
        return -EFAULT;
    cons = shared_load32(&c, page + cons_offset);
    prod = shared_load32(&c, page + prod_offset);
    barrier_read();
    if (c.aborted)
        return KERNEL_E_ABORTED;
    n = prod - cons;
    if (n > size)
        return KERNEL_E_OVERFLOW;
    if (n > max)
        n = max;
    if (!n)
        return 0;
    at = cons & (size - 1);
    head = size - at < n ? size - at : n;
    shared_copy_out(&c, to, page + base + at, head);
    if (head < n)
        shared_copy_out(&c, to + head, page + base, n - head);
    barrier_full();                 /* copied before the producer may overwrite */
    shared_store32(&c, page + cons_offset, cons + n);
    return call_end(&c, n);
}
