/*
 * Event channels: what is the same in both ABIs, and the choice between them
 * (xen/common/event_channel.c). The states of ports are Python's; here is what a send needs.
 */
#include "domain.h"

#define VCPU_INFO_SIZE 64u
#define NR_LEGACY_VCPUS 32u

/* The shared_info frame; a vcpu below 32 has its vcpu_info there (public/xen.h). */
static int evtchn_attach(domain *d, uint32_t frame, uint32_t nr_vcpus)
{
    KERNEL_ENTER(d->m);
    if (frame >= d->m->high_water || !d->m->frames[frame].refs || nr_vcpus > MAX_VCPUS)
        return -EINVAL;
    d->nr_vcpus = nr_vcpus;
    d->shared_info = frame_address(d->m, frame);
    for (uint32_t vcpu = 0; vcpu < nr_vcpus && vcpu < NR_LEGACY_VCPUS; vcpu++)
        d->vcpu_info[vcpu] = d->shared_info + vcpu * VCPU_INFO_SIZE;
    return 0;
}

/* One more bucket of ports becomes valid. */
static int evtchn_grow(domain *d)
{
    uint32_t bucket = d->nr_ports / PORTS_PER_BUCKET;
    evtchn **ports, *fresh;

    KERNEL_ENTER(d->m);
    if (d->nr_ports >= EVTCHN_FIFO_NR_CHANNELS)
        return -ENOSPC;
    /* The table doubles: it is moved when the count of buckets is a power of two. */
    if (!(bucket & (bucket - 1))) {
        ports = realloc(d->ports, (bucket ? 2 * bucket : 1) * sizeof(*ports));
        if (!ports)
            return -ENOMEM;
        d->ports = ports;
    }
    fresh = calloc(PORTS_PER_BUCKET, sizeof(*fresh));
    if (!fresh)
        return -ENOMEM;
    for (uint32_t i = 0; i < PORTS_PER_BUCKET; i++) {
        fresh[i].d = d;
        fresh[i].port = d->nr_ports + i;
        fresh[i].priority = fresh[i].last_priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
    }
    d->ports[bucket] = fresh;
    d->nr_ports += PORTS_PER_BUCKET;
    return 0;
}

/* The handle of a valid port, good for the domain's life; NULL beyond. */
static evtchn *evtchn_port(domain *d, uint32_t port)
{
    if (port >= d->nr_ports)
        return NULL;
    return &d->ports[port / PORTS_PER_BUCKET][port % PORTS_PER_BUCKET];
}

static void evtchn_free_ports(domain *d)
{
    for (uint32_t bucket = 0; bucket < d->nr_ports / PORTS_PER_BUCKET; bucket++)
        free(d->ports[bucket]);
    free(d->ports);
    d->ports = NULL;
    d->nr_ports = 0;
}

static void evtchn_release(domain *d) { fifo_destroy(d); }

/* Binding: where its events go, at the default priority. */
static int evtchn_init(evtchn *e, uint32_t vcpu)
{
    e->vcpu = (uint8_t)vcpu;
    e->priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
    return 0;
}

static int evtchn_set_vcpu(evtchn *e, uint32_t vcpu)
{
    e->vcpu = (uint8_t)vcpu;
    return 0;
}

static int evtchn_set_priority(evtchn *e, uint32_t priority)
{
    e->priority = (uint8_t)priority;
    return 0;
}

static uint32_t evtchn_get_priority(evtchn *e) { return e->priority; }
static int evtchn_is_saved(evtchn *e) { return e->saved; }

static void evtchn_set_polling(domain *d, int polling) { d->polling = (uint8_t)polling; }

static inline int64_t raise_end(struct call *c, const domain *d, int raised)
{
    if (__builtin_expect(raised && d->polling, 0))
        raised |= RAISED_POLL;
    return call_end(c, raised);
}

/* Set a bound port pending: RAISED_* bits. */
static int64_t evtchn_raise(evtchn *e)
{
    domain *d = e->d;
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    int raised;

    KERNEL_ENTER(d->m);
    if (__builtin_expect(d->fifo != NULL, 0))
        raised = set_pending_fifo(&c, e);
    else if (__builtin_expect(port_fits_2l(d, e->port), 1))
        raised = set_pending_2l(&c, d, e->port, e->vcpu);
    else
        return -EINVAL;
    return raise_end(&c, d, raised);
}

/* The same by number, for a vcpu of the caller's choice; 2-level ports need not be valid. */
static int64_t evtchn_set_pending(domain *d, uint32_t port, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    evtchn *e = evtchn_port(d, port);
    int raised;

    KERNEL_ENTER(d->m);
    if (vcpu >= MAX_VCPUS || (d->fifo ? !e : !port_fits_2l(d, port) || !d->vcpu_info[vcpu]))
        return -EINVAL;
    raised = d->fifo ? set_pending_fifo(&c, e) : set_pending_2l(&c, d, port, vcpu);
    return raise_end(&c, d, raised);
}

/* EVTCHNOP_unmask of a bound port: RAISED_* bits. */
static int64_t evtchn_unmask(evtchn *e)
{
    domain *d = e->d;
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    int raised = 0;

    KERNEL_ENTER(d->m);
    if (d->fifo)
        raised = unmask_fifo(&c, e);
    else if (port_fits_2l(d, e->port))
        raised = unmask_2l(&c, d, e->port, e->vcpu);
    return raise_end(&c, d, raised);
}

/* What freeing a port clears: PENDING and not MASKED, and what waited for an array page. */
static int64_t evtchn_clear(evtchn *e)
{
    domain *d = e->d;
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint8_t *word;

    KERNEL_ENTER(d->m);
    e->saved = 0;
    e->vcpu = 0;
    if (d->fifo) {
        word = fifo_word(d, e->port);
        if (word)
            shared_fetch_and32(&c, word, ~WORD_PENDING);
    } else if (port_fits_2l(d, e->port)) {
        word_clear(&c, d, evtchn_word(d, e->port, 0), e->port % evtchn_width(d));
    }
    return call_end(&c, 0);
}

/* Xen's own look at a port: SCHEDOP_poll and the reuse of a number ask. */
static int64_t evtchn_test(evtchn *e, uint32_t flag)
{
    domain *d = e->d;
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint8_t *word;
    uint32_t seen = 0;

    KERNEL_ENTER(d->m);
    if (d->fifo) {
        word = fifo_word(d, e->port);
        if (word)
            seen = shared_load32(&c, word) & flag;
    } else if (flag == WORD_PENDING && port_fits_2l(d, e->port)) {
        seen = (uint32_t)word_test(&c, d, evtchn_word(d, e->port, 0), e->port % evtchn_width(d));
    }
    return call_end(&c, seen != 0);
}

/* A free port that is still LINKED is busy: it must not be given out again. */
static int64_t evtchn_is_busy(evtchn *e)
{
    return e->d->fifo ? evtchn_test(e, WORD_LINKED) : 0;
}

static int64_t evtchn_polls_pending(evtchn *e) { return evtchn_test(e, WORD_PENDING); }

/* First init_control: the 2-level pending bits of all valid ports are saved. */
static int64_t evtchn_save_pending(domain *d)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);

    KERNEL_ENTER(d->m);
    for (uint32_t port = 1; port < d->nr_ports; port++) {
        evtchn *e = evtchn_port(d, port);

        if (port_fits_2l(d, port) &&
            word_test(&c, d, evtchn_word(d, port, 0), port % evtchn_width(d)))
            e->saved = 1;
        e->priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
    }
    return call_end(&c, 0);
}

/* The lowest port of [from, to) that was saved, which it then is no more; -ENOENT. */
static int64_t evtchn_next_saved(domain *d, uint32_t from, uint32_t to)
{
    for (uint32_t port = from; port < to && port < d->nr_ports; port++) {
        evtchn *e = evtchn_port(d, port);

        if (e->saved) {
            e->saved = 0;
            return port;
        }
    }
    return -ENOENT;
}

/* The guest's primitives, on the bits of whichever ABI is in force. */

struct guest_bit {
    uint8_t *word;
    uint32_t bit;
    int wide;           /* a 2-level word of the domain's width, not a u32 */
};

static inline int guest_bit(const domain *d, uint32_t port, int mask, struct guest_bit *b)
{
    if (d->fifo) {
        b->word = fifo_word(d, port);
        b->bit = mask ? EVTCHN_FIFO_MASKED : EVTCHN_FIFO_PENDING;
        b->wide = 0;
        return b->word ? 0 : -EINVAL;
    }
    if (!port_fits_2l(d, port))
        return -EINVAL;
    b->word = evtchn_word(d, port, mask);
    b->bit = port % evtchn_width(d);
    b->wide = 1;
    return 0;
}

#define GUEST_TEST 0
#define GUEST_SET 1
#define GUEST_CLEAR 2

/* The bit's value, before it was changed. */
static inline int64_t guest_access(domain *d, uint32_t port, int mask, int how)
{
    struct call c = call_begin(d->m, d->domid, 0);
    struct guest_bit b;
    int old;

    KERNEL_ENTER(d->m);
    if (guest_bit(d, port, mask, &b))
        return -EINVAL;
    if (b.wide)
        old = how == GUEST_TEST ? word_test(&c, d, b.word, b.bit)
            : how == GUEST_SET ? word_set(&c, d, b.word, b.bit) : word_clear(&c, d, b.word, b.bit);
    else
        old = (how == GUEST_TEST ? shared_load32(&c, b.word)
             : how == GUEST_SET ? shared_fetch_or32(&c, b.word, 1u << b.bit)
             : shared_fetch_and32(&c, b.word, ~(1u << b.bit))) >> b.bit & 1;
    return call_end(&c, old);
}

static int64_t evtchn_is_pending(domain *d, uint32_t port)
{
    return guest_access(d, port, 0, GUEST_TEST);
}

static int64_t evtchn_is_masked(domain *d, uint32_t port)
{
    return guest_access(d, port, 1, GUEST_TEST);
}

static int evtchn_clear_pending(domain *d, uint32_t port)
{
    int64_t old = guest_access(d, port, 0, GUEST_CLEAR);

    return old < 0 ? (int)old : 0;
}

/* Test and clear: 1 if it was pending. */
static int evtchn_take_pending(domain *d, uint32_t port)
{
    return (int)guest_access(d, port, 0, GUEST_CLEAR);
}

static int evtchn_mask(domain *d, uint32_t port)
{
    int64_t old = guest_access(d, port, 1, GUEST_SET);

    return old < 0 ? (int)old : 0;
}

/* The guest clears the mask bit itself; 1: the port is pending, its caller has to act. */
static int64_t evtchn_guest_unmask(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);
    int pending;

    KERNEL_ENTER(d->m);
    if (d->fifo ? !fifo_word(d, port) : !port_fits_2l(d, port))
        return -EINVAL;
    pending = d->fifo ? guest_unmask_fifo(&c, fifo_word(d, port)) : guest_unmask_2l(&c, d, port);
    return call_end(&c, pending);
}

static int64_t evtchn_scan(domain *d, uint32_t vcpu, uint32_t *ports, uint32_t max, int ack)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint32_t n;

    KERNEL_ENTER(d->m);
    if (!d->shared_info || vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu])
        return -EINVAL;
    n = scan_2l(&c, d, vcpu, NULL, ports, max, ack);
    return call_end(&c, n);
}

static int64_t evtchn_upcall_pending(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t pending;

    KERNEL_ENTER(d->m);
    if (vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu])
        return -EINVAL;
    pending = shared_load8(&c, d->vcpu_info[vcpu]);
    return call_end(&c, pending);
}

/* Exchange upcall_pending with 0: what a vcpu does before it looks for FIFO events. */
static int64_t evtchn_take_upcall(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t pending;

    KERNEL_ENTER(d->m);
    if (vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu])
        return -EINVAL;
    pending = shared_exchange8(&c, d->vcpu_info[vcpu], 0);
    return call_end(&c, pending);
}

/* Whether an upcall is deliverable: upcall_pending without upcall_mask. Xen asks. */
static int64_t evtchn_deliverable(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    int pending;

    KERNEL_ENTER(d->m);
    if (vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu])
        return 0;
    pending = shared_load8(&c, d->vcpu_info[vcpu]) && !shared_load8(&c, d->vcpu_info[vcpu] + 1);
    return call_end(&c, pending);
}

/* The upcall of one vcpu: its ports are all of them on vcpu 0, none on another one. */
static upcall *upcall_new(domain *d, uint32_t vcpu, int ack)
{
    upcall *u = calloc(1, sizeof(*u));

    if (!u)
        return NULL;
    u->d = d;
    u->vcpu = vcpu;
    u->ack = ack;
    if (!vcpu)
        memset(u->mine, 0xff, sizeof(u->mine));
    return u;
}

static void upcall_free(upcall *u) { free(u); }
static uint32_t *upcall_ports(upcall *u) { return u->ports; }

static inline void bitmap_write(uint64_t *bits, uint32_t port, int value)
{
    bits[port / 64] &= ~(1ull << port % 64);
    bits[port / 64] |= (uint64_t)!!value << port % 64;
}

/* Whether this vcpu handles a port, and whether it masks it first. */
static void upcall_port(upcall *u, uint32_t port, int mine, int automask)
{
    if (port >= 64 * 64)
        return;
    bitmap_write(u->mine, port, mine);
    bitmap_write(u->automask, port, automask);
}

/*
 * Take the upcall. One due port, by far the usual case, is drained here (masked if it is
 * auto-masked, acknowledged) and is the result. 0: none. -1 - n: n ports are due and in
 * upcall_ports(), drained only with `ack`; if n is UPCALL_PORTS there may be more.
 */
static int64_t upcall_take(upcall *u)
{
    domain *d = u->d;
    struct call c = call_begin(d->m, d->domid, 0);
    uint32_t n;

    KERNEL_ENTER(d->m);
    if (!d->shared_info || !d->vcpu_info[u->vcpu])
        return 0;
    n = scan_2l(&c, d, u->vcpu, u, u->ports, UPCALL_PORTS, u->ack);
    if (n == 1) {
        if (!u->ack)
            upcall_drain(&c, u, u->ports[0]);
        return call_end(&c, u->ports[0]);
    }
    return call_end(&c, n ? -1 - (int64_t)n : 0);
}
