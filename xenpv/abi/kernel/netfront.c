/*
 * A frontend's tx ring: packets into pages and slots, responses back into packets. What goes
 * in how many slots, and with which extras, is Python's to say; frames without any of it, which
 * are most, are laid out here. All state is in one private table that Python owns.
 */
#include "domain.h"

enum {
    FRONT_IDS = 520,            /* a page a slot, a multicast request a slot, and id 0 */
    FRONT_HEADERS_MAX = 512,    /* what XenVif's header buffer takes */
    FRONT_OWN = 0xffff,         /* of owner[]: a request of the driver's own, without a page */
    FRONT_LENGTH_BITS = 10,     /* of a packet's code; its traits stand above */
};

/* Why net_front_send or net_front_answer stopped before the end. */
enum {
    FRONT_ROOM = 1,             /* no more slots or pages */
    FRONT_HEADERS = 2,          /* a frame whose headers are not what they say */
    FRONT_NULL = 3,             /* more NULL responses than extras */
    FRONT_ID = 4,               /* a response to no slot */
    FRONT_STATUS = 5,           /* a status that is none */
};

/* A packet in flight, at the id of its first slot. */
struct net_sent {
    int64_t cookie;
    uint32_t length;
    uint32_t code;              /* bytes of its headers, and what statistics count of it */
    uint16_t left;              /* slots without a response */
    uint8_t kind;               /* of its destination; 0: nobody hears of it */
    uint8_t status;             /* what its completion says */
    uint8_t kept;               /* the backend holds on to its first page */
};

struct net_front_table {
    uint32_t nr_free;
    uint32_t nulls;             /* extras in flight */
    uint32_t in_flight;         /* slots, extras apart */
    uint32_t pfns[FRONT_IDS];
    uint32_t refs[FRONT_IDS];
    struct net_sent packets[FRONT_IDS];
    uint16_t owner[FRONT_IDS];  /* the packet of a slot, plus 1; 0: not in flight */
    uint16_t free[FRONT_IDS];   /* a stack */
};

/* One ring, bound anew by Python where it comes to life. */
struct net_front {
    ring *ring;
    struct net_front_table *table;
    uint32_t domid;
    uint32_t grant_flags;
    uint32_t pad_to;            /* shorter frames get zeros up to here */
    uint32_t reserve;           /* slots that stay free */
    uint32_t headers;           /* they have a slot of their own */
    uint32_t linear;            /* a packet is one slot */
    /* What a call leaves behind. */
    uint32_t pending;           /* slots written and not published */
    uint32_t stopped;           /* FRONT_*, 0: all done */
    uint32_t done;              /* completions */
    uint32_t answered;          /* slots */
    uint32_t own;               /* responses to requests of the driver's own: id | status << 16 */
    int32_t number, status;     /* of the response that is wrong */
    int32_t busy;               /* a slot that was answered while its grant is in use, or -1 */
};

/* A completion as callbacks.py has it. */
struct net_completion {
    int64_t cookie, status, kind, length, payload, traits;
};

enum { PACKET_OK = 2, PACKET_DROPPED = 3, PACKET_ERROR = 4 };

static uint32_t front_room(const struct net_front *f)
{
    return front_free(f->ring) - f->pending;
}

static void front_slot(struct net_front *f, const void *request)
{
    struct call c = call_begin(f->ring->d->m, f->ring->d->domid, 0);

    slot_write(&c, f->ring, f->ring->prod_pvt + f->pending, request,
               sizeof(struct netif_tx_request));
    f->pending++;
}

/* One more page of a packet: its bytes, its grant, its slot. The id, or an error. */
static int64_t front_page(struct net_front *f, uint32_t packet, uint32_t offset, const void *data,
                          uint32_t size, uint32_t pad, uint32_t flags, uint32_t told)
{
    static const uint8_t zeros[64];
    struct net_front_table *t = f->table;
    uint16_t id = t->free[t->nr_free - 1];
    struct netif_tx_request request = {
        .gref = t->refs[id], .offset = (uint16_t)offset, .flags = (uint16_t)flags,
        .id = id, .size = (uint16_t)told,
    };
    domain *d = f->ring->d;
    int64_t error = page_write(d, t->pfns[id], offset, data, size);

    if (error >= 0 && pad)
        error = page_write(d, t->pfns[id], offset + size, zeros, pad);
    if (error >= 0)
        error = grant_entry_set(d, t->refs[id], f->domid, t->pfns[id], f->grant_flags);
    if (error < 0)
        return error;
    t->nr_free--;
    t->owner[id] = (uint16_t)(packet == UINT32_MAX ? id + 1u : packet + 1u);
    t->in_flight++;
    front_slot(f, &request);
    return id;
}

static uint8_t front_kind(const uint8_t *frame)
{
    static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    if (!(frame[0] & 1))
        return 1;
    return memcmp(frame, broadcast, 6) ? 2 : 3;
}

/* Headers' length and traits of a frame whose sums nobody looked at; 0: ask Python. */
static uint32_t front_code(const uint8_t *frame, uint32_t size)
{
    struct net_headers h;
    uint32_t traits;

    if (!net_parse(frame, size, &h) || h.length > FRONT_HEADERS_MAX)
        return 0;
    traits = h.facts & (NET_TAGGED | NET_LLC_SNAP | NET_IPV4 | NET_IPV6 | NET_TCP | NET_UDP);
    if (h.facts & NET_IPV4)
        traits |= NET_IP_NOT_VALIDATED;
    if (h.facts & NET_TCP)
        traits |= NET_TCP_NOT_VALIDATED;
    if (h.facts & NET_UDP)
        traits |= NET_TCP_NOT_VALIDATED << 3;
    return h.length | traits << FRONT_LENGTH_BITS;
}

/* A frame of `size` bytes, the first `head` in a slot of their own; slots are there. */
static int64_t front_frame(struct net_front *f, const uint8_t *frame, uint32_t size, uint32_t head,
                           uint32_t code, int64_t cookie)
{
    uint32_t padded = size < f->pad_to ? f->pad_to : size, at, n, count = 1;
    int64_t id = front_page(f, UINT32_MAX, 0, frame, head, head == size ? padded - size : 0,
                            head == size ? 0 : NETTXF_more_data, padded);

    if (id < 0)
        return id;
    for (at = head; at < size; at += n, count++) {
        int64_t error;
        int last;

        n = size - at < FRAME_SIZE ? size - at : FRAME_SIZE;
        last = at + n == size;
        error = front_page(f, (uint32_t)id, 0, frame + at, n, last ? padded - size : 0,
                           last ? 0 : NETTXF_more_data, last ? n + padded - size : n);
        if (error < 0)
            return error;
    }
    f->table->packets[id] = (struct net_sent){
        .cookie = cookie, .length = size, .code = code, .left = (uint16_t)count,
        .kind = front_kind(frame), .status = PACKET_OK,
    };
    return 0;
}

/*
 * Slots for n frames, back to back in `data`, up to about `most` of them: how many frames were
 * taken. Nothing is published.
 */
static int64_t net_front_send(struct net_front *f, const void *data, uint32_t size,
                              const uint32_t *lengths, const int64_t *cookies, uint32_t n,
                              uint32_t most)
{
    const uint8_t *frame = data;
    int64_t error = ring_enter(f->ring);

    f->stopped = 0;
    for (uint32_t i = 0; i < n && !error; frame += lengths[i], size -= lengths[i], i++) {
        uint32_t length = lengths[i], head = length, code = 0, slots;

        if (length > size || length < ETHERNET_HEADER || (f->linear && length > FRAME_SIZE))
            return -EINVAL;
        if (f->pending >= most)
            return i;
        if (f->headers) {
            code = front_code(frame, length);
            head = code & ((1u << FRONT_LENGTH_BITS) - 1);
            if (!head)
                f->stopped = FRONT_HEADERS;
        } else if (head > FRAME_SIZE) {
            head = FRAME_SIZE;
        }
        if (f->linear)
            head = length;
        slots = 1 + (length - head + FRAME_SIZE - 1) / FRAME_SIZE;
        if (front_room(f) <= f->reserve || slots > front_room(f) || slots > f->table->nr_free)
            f->stopped = FRONT_ROOM;
        if (f->stopped)
            return i;
        error = front_frame(f, frame, length, head, code, cookies[i]);
    }
    return error ? error : (int64_t)n;
}

/*
 * One packet of any shape: `pieces` are offset and length of each slot's bytes in `data`, `extras`
 * whole slots that follow the first. `told` is the length of the whole. Room must be there.
 */
static int64_t net_front_chain(struct net_front *f, const void *data, uint32_t size,
                               const uint32_t *pieces, uint32_t n, uint32_t flags,
                               const void *extras, uint32_t nr_extras, struct net_sent *packet)
{
    const uint8_t *bytes = data, *extra = extras;
    int64_t id, first = UINT32_MAX, error = ring_enter(f->ring);
    uint32_t total = size;

    if (error)
        return error;
    if (!n || n > f->table->nr_free || n + nr_extras > front_room(f))
        return -ENOSPC;
    flags |= nr_extras ? NETTXF_extra_info : 0;
    for (uint32_t i = 0; i < n; i++, pieces += 2) {
        if (pieces[1] > size || pieces[0] + pieces[1] > FRAME_SIZE)
            return -EINVAL;
        id = front_page(f, (uint32_t)first, pieces[0], bytes, pieces[1], 0,
                        flags | (i + 1 < n ? NETTXF_more_data : 0), i ? pieces[1] : total);
        if (id < 0)
            return id;
        if (!i) {
            first = id;
            for (uint32_t e = 0; e < nr_extras; e++, extra += sizeof(struct netif_tx_request))
                front_slot(f, extra);
            f->table->nulls += nr_extras;
        }
        flags = 0;
        bytes += pieces[1];
        size -= pieces[1];
    }
    f->table->packets[first] = *packet;
    f->table->packets[first].left = (uint16_t)n;
    f->table->packets[first].status = PACKET_OK;
    return 0;
}

/* A request of the driver's own, without data, and the extra behind it. */
static int64_t net_front_own(struct net_front *f, uint32_t id, const void *extra)
{
    struct netif_tx_request request = { .flags = NETTXF_extra_info, .id = (uint16_t)id };
    int error = ring_enter(f->ring);

    if (error)
        return error;
    if (id >= FRONT_IDS || f->table->owner[id] || front_room(f) < 2)
        return -EINVAL;
    f->table->owner[id] = FRONT_OWN;
    f->table->in_flight++;
    f->table->nulls++;
    front_slot(f, &request);
    front_slot(f, extra);
    return 0;
}

/* RING_PUSH_REQUESTS_AND_CHECK_NOTIFY of what is pending: 1: notify the backend. */
static int64_t net_front_publish(struct net_front *f)
{
    struct call c = call_begin(f->ring->d->m, f->ring->d->domid, 0);
    int notify, error = ring_enter(f->ring);

    if (error)
        return error;
    notify = ring_publish(&c, f->ring, REQ_PROD, REQ_EVENT, f->pending);
    f->pending = 0;
    return call_end(&c, notify);
}

/* The slot `id` was answered: 0, or an error other than that its grant is in use. */
static int front_answered(struct net_front *f, uint16_t id, int status,
                          struct net_completion *completions)
{
    struct net_front_table *t = f->table;
    uint16_t owner = t->owner[id];
    struct net_sent *packet = &t->packets[owner - 1];
    int busy = grant_entry_revoke(f->ring->d, t->refs[id]);

    if (busy && busy != -EBUSY)
        return busy;
    t->owner[id] = 0;
    t->in_flight--;
    f->answered++;
    /* The first id names the packet, so it is free only when that is complete. */
    packet->left--;
    if (busy)
        f->busy = f->busy < 0 ? id : f->busy;
    else if (id != owner - 1)
        t->free[t->nr_free++] = id;
    if (busy && id == owner - 1)
        packet->kept = 1;
    if (!packet->left && !packet->kept)
        t->free[t->nr_free++] = (uint16_t)(owner - 1);
    if (status && packet->status == PACKET_OK)      /* the first that is not OKAY wins */
        packet->status = status == NETIF_RSP_DROPPED ? PACKET_DROPPED : PACKET_ERROR;
    if (packet->left || !packet->kind)
        return 0;
    completions[f->done++] = (struct net_completion){
        packet->cookie, packet->status, packet->kind, packet->length,
        packet->length - (packet->code & ((1u << FRONT_LENGTH_BITS) - 1)),
        packet->code >> FRONT_LENGTH_BITS,
    };
    return 0;
}

/*
 * n responses, in private memory. Packets that are complete go to `completions`, which takes n;
 * an answer to a request of the driver's own ends the call after it, in `own`. The number of
 * responses looked at.
 */
static int64_t net_front_answer(struct net_front *f, const void *responses, uint32_t n,
                                struct net_completion *completions)
{
    const struct netif_tx_response *response = responses;
    struct net_front_table *t = f->table;
    int error;

    f->stopped = f->done = f->answered = f->own = 0;
    f->busy = -1;
    for (uint32_t i = 0; i < n; i++, response++) {
        uint16_t id = response->id;
        int status = response->status;

        if (status == NETIF_RSP_NULL) {
            /* Of its slot a backend writes the status alone: the id is whose it was before. */
            if (!t->nulls)
                f->stopped = FRONT_NULL;
            else
                t->nulls--, f->answered++;
        } else if (id >= FRONT_IDS || !t->owner[id]) {
            f->stopped = FRONT_ID;
        } else if (status != NETIF_RSP_OKAY && status != NETIF_RSP_DROPPED &&
                   status != NETIF_RSP_ERROR) {
            f->stopped = FRONT_STATUS;
        } else if (t->owner[id] == FRONT_OWN) {
            t->owner[id] = 0;
            t->in_flight--;
            f->answered++;
            f->own = id | (uint32_t)(uint16_t)status << 16;
            return i + 1;
        } else {
            error = front_answered(f, id, status, completions);
            if (error)
                return error;
        }
        if (f->stopped) {
            f->number = id;
            f->status = status;
            return i;
        }
    }
    return n;
}

/* Nothing is answered any more: what is in flight goes to `completions`, which takes FRONT_IDS. */
static uint32_t net_front_abort(struct net_front *f, uint32_t status,
                                struct net_completion *completions)
{
    struct net_front_table *t = f->table;
    uint32_t done = 0;

    for (uint32_t id = 0; id < FRONT_IDS; id++) {
        uint16_t owner = t->owner[id];
        struct net_sent *packet;

        t->owner[id] = 0;
        if (!owner || owner == FRONT_OWN)
            continue;
        packet = &t->packets[owner - 1];
        if (--packet->left || !packet->kind)
            continue;
        completions[done++] = (struct net_completion){
            packet->cookie, status, packet->kind, 0, 0, 0,
        };
    }
    t->in_flight = t->nulls = 0;
    return done;
}
