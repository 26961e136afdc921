/*
 * The 2-level event channel ABI: pending and mask words of shared_info, the selector of
 * vcpu_info (xen/common/event_2l.c; public/xen.h). 64-bit guests have 64 x 64 ports, 32-bit
 * guests 32 x 32.
 */
#include "domain.h"

#define EVTCHN_PENDING 0x800u

/* One port as Xen sees it; Python keeps what it is bound to (struct evtchn of xen/sched.h). */
struct evtchn {
    domain *d;
    uint32_t port;
    uint8_t vcpu;                         /* notify_vcpu_id */
    uint8_t priority;
    uint8_t last_vcpu, last_priority;     /* the FIFO queue that it was linked to last */
    uint8_t saved;                        /* raised while its event array page was missing */
};

typedef struct evtchn evtchn;

/* What set-pending answers, or-ed. */
#define RAISED_NEW 1     /* was not pending */
#define RAISED_KICK 2    /* upcall_pending rose: the vcpu takes an interrupt */
#define RAISED_POLL 4    /* one of the above, and somebody waits in SCHEDOP_poll */

static inline uint32_t evtchn_width(const domain *d) { return d->is_32bit ? 32 : 64; }

static inline int port_fits_2l(const domain *d, uint32_t port)
{
    return d->shared_info && port < evtchn_width(d) * evtchn_width(d);
}

static inline uint8_t *evtchn_word(const domain *d, uint32_t port, int mask)
{
    uint32_t width = evtchn_width(d);
    uint32_t base = EVTCHN_PENDING + (mask ? width * width / 8 : 0);

    return d->shared_info + base + port / width * (width / 8);
}

static inline uint8_t *vcpu_selector(const domain *d, uint32_t vcpu)
{
    return d->vcpu_info[vcpu] + (d->is_32bit ? 4 : 8);
}

/* Test and set / clear bit `bit` of the 32- or 64-bit word at p; the old bit. */
static inline int word_set(struct call *c, const domain *d, uint8_t *p, uint32_t bit)
{
    if (d->is_32bit)
        return (int)(shared_fetch_or32(c, p, 1u << bit) >> bit & 1);
    return (int)(shared_fetch_or64(c, p, 1ull << bit) >> bit & 1);
}

static inline int word_clear(struct call *c, const domain *d, uint8_t *p, uint32_t bit)
{
    if (d->is_32bit)
        return (int)(shared_fetch_and32(c, p, ~(1u << bit)) >> bit & 1);
    return (int)(shared_fetch_and64(c, p, ~(1ull << bit)) >> bit & 1);
}

static inline int word_test(struct call *c, const domain *d, uint8_t *p, uint32_t bit)
{
    if (d->is_32bit)
        return (int)(shared_load32(c, p) >> bit & 1);
    return (int)(shared_load64(c, p) >> bit & 1);
}

static inline uint64_t word_load(struct call *c, const domain *d, uint8_t *p)
{
    return d->is_32bit ? shared_load32(c, p) : shared_load64(c, p);
}

/* vcpu_mark_events_pending: whether upcall_pending rose. Vcpus above 31 that registered no
 * vcpu_info share one that nobody reads: there it rises once. NULL: no such vcpu. */
static inline int vcpu_mark(struct call *c, domain *d, uint32_t vcpu)
{
    uint8_t *info = vcpu < MAX_VCPUS ? d->vcpu_info[vcpu] : NULL;

    return info && !shared_exchange8(c, info, 1) ? RAISED_KICK : 0;
}

static inline int select_2l(struct call *c, domain *d, uint32_t port, uint32_t vcpu)
{
    if (vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu] ||
        word_set(c, d, vcpu_selector(d, vcpu), port / evtchn_width(d)))
        return 0;
    return vcpu_mark(c, d, vcpu);
}

static inline int set_pending_2l(struct call *c, domain *d, uint32_t port, uint32_t vcpu)
{
    uint32_t bit = port % evtchn_width(d);
    int raised = RAISED_NEW;

    if (word_set(c, d, evtchn_word(d, port, 0), bit))
        return 0;
    if (!word_test(c, d, evtchn_word(d, port, 1), bit))
        raised |= select_2l(c, d, port, vcpu);
    return raised;
}

static int unmask_2l(struct call *c, domain *d, uint32_t port, uint32_t vcpu)
{
    uint32_t bit = port % evtchn_width(d);

    if (word_clear(c, d, evtchn_word(d, port, 1), bit) &&
        word_test(c, d, evtchn_word(d, port, 0), bit))
        return select_2l(c, d, port, vcpu);
    return 0;
}

/* The guest clears the mask bit itself; 1: the port is pending, its caller has to act. */
static int guest_unmask_2l(struct call *c, domain *d, uint32_t port)
{
    uint32_t bit = port % evtchn_width(d);

    word_clear(c, d, evtchn_word(d, port, 1), bit);
    return word_test(c, d, evtchn_word(d, port, 0), bit);
}

/*
 * How one vcpu of a guest takes its upcall. `mine` has the ports whose handlers run on this
 * vcpu (cpu_evtchn_mask of Linux' events_2l.c): the pending words are common to all vcpus.
 * `automask` has those that are masked before they are acknowledged. The guest's own
 * memory, in C so that the usual upcall is one call.
 */
struct upcall {
    domain *d;
    uint32_t vcpu;
    int ack;
    uint64_t mine[64], automask[64];
    uint32_t ports[64];
};

typedef struct upcall upcall;

#define UPCALL_PORTS 64u

static inline uint64_t upcall_mine(const upcall *u, const domain *d, uint32_t word)
{
    return d->is_32bit ? u->mine[word / 2] >> (word % 2 * 32) : u->mine[word];
}

/* Clear upcall_pending, exchange the selector: what a vcpu does first. */
static inline uint64_t selector_take(struct call *c, domain *d, uint32_t vcpu)
{
    shared_exchange8(c, d->vcpu_info[vcpu], 0);
    return d->is_32bit ? shared_exchange32(c, vcpu_selector(d, vcpu), 0)
                       : shared_exchange64(c, vcpu_selector(d, vcpu), 0);
}

/* Selector bits of words that were not looked at are put back, and so is the upcall. */
static void selector_put_back(struct call *c, domain *d, uint32_t vcpu, uint64_t selector)
{
    for (; selector && !c->aborted; selector &= selector - 1) {
        word_set(c, d, vcpu_selector(d, vcpu), (uint32_t)__builtin_ctzll(selector));
        shared_exchange8(c, d->vcpu_info[vcpu], 1);
    }
}

/*
 * Collect ports that are pending, not masked and `mine` (all if u is NULL), in ascending
 * order; with ack their pending bits are cleared.
 */
static uint32_t scan_2l(struct call *c, domain *d, uint32_t vcpu, const upcall *u,
                        uint32_t *ports, uint32_t max, int ack)
{
    uint32_t width = evtchn_width(d), n = 0;
    uint64_t selector = selector_take(c, d, vcpu);

    while (selector && !c->aborted) {
        uint32_t word = (uint32_t)__builtin_ctzll(selector);
        uint8_t *pending = evtchn_word(d, word * width, 0);
        uint64_t active = word_load(c, d, pending);

        active &= ~word_load(c, d, evtchn_word(d, word * width, 1));
        if (u)
            active &= upcall_mine(u, d, word);
        for (; active && n < max; active &= active - 1) {
            uint32_t bit = (uint32_t)__builtin_ctzll(active);

            ports[n++] = word * width + bit;
            if (ack)
                word_clear(c, d, pending, bit);
        }
        if (active)
            break;
        selector &= selector - 1;
    }
    selector_put_back(c, d, vcpu, selector);
    return n;
}

/* One event: mask it if it is auto-masked, then acknowledge, as win-xenbus does. */
static inline void upcall_drain(struct call *c, upcall *u, uint32_t port)
{
    uint32_t bit = port % evtchn_width(u->d);

    if (u->automask[port / 64] >> port % 64 & 1)
        word_set(c, u->d, evtchn_word(u->d, port, 1), bit);
    word_clear(c, u->d, evtchn_word(u->d, port, 0), bit);
}
