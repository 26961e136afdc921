/*
 * The 2-level event channel ABI: pending and mask words of shared_info, the selector and
 * upcall_pending of vcpu_info (xen/common/event_2l.c; public/xen.h). 64-bit guests have
 * 64 x 64 ports, 32-bit guests 32 x 32.
 */
#include "domain.h"

#define VCPU_INFO_SIZE 64u
#define NR_LEGACY_VCPUS 32u
#define EVTCHN_PENDING 0x800u

static inline uint32_t evtchn_width(const domain *d) { return d->is_32bit ? 32 : 64; }

static inline uint8_t *evtchn_word(const domain *d, uint32_t port, int mask)
{
    uint32_t width = evtchn_width(d);
    uint32_t base = EVTCHN_PENDING + (mask ? width * width / 8 : 0);

    return d->shared_info + base + port / width * (width / 8);
}

static inline uint8_t *vcpu_info(const domain *d, uint32_t vcpu)
{
    return d->vcpu_info[vcpu];
}

static inline uint8_t *vcpu_selector(const domain *d, uint32_t vcpu)
{
    return vcpu_info(d, vcpu) + (d->is_32bit ? 4 : 8);
}

static inline int evtchn_bad(const domain *d, uint32_t port, uint32_t vcpu)
{
    return !d->shared_info || port >= evtchn_width(d) * evtchn_width(d) ||
           vcpu >= MAX_VCPUS || !d->vcpu_info[vcpu];
}

/* The shared_info frame; a vcpu below 32 has its vcpu_info there (public/xen.h). */
static int evtchn_attach(domain *d, uint32_t frame, uint32_t nr_vcpus)
{
    KERNEL_ENTER(d->m);
    if (frame >= d->m->high_water || !d->m->frames[frame].refs || nr_vcpus > MAX_VCPUS)
        return -EINVAL;
    d->shared_info = frame_address(d->m, frame);
    for (uint32_t vcpu = 0; vcpu < nr_vcpus && vcpu < NR_LEGACY_VCPUS; vcpu++)
        d->vcpu_info[vcpu] = d->shared_info + vcpu * VCPU_INFO_SIZE;
    return 0;
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

/* Selector, then upcall_pending: 1 when that rose and the vcpu has to be kicked. */
static int evtchn_raise(struct call *c, domain *d, uint32_t port, uint32_t vcpu)
{
    if (word_set(c, d, vcpu_selector(d, vcpu), port / evtchn_width(d)))
        return 0;
    return !shared_exchange8(c, vcpu_info(d, vcpu), 1);
}

/* 3: newly pending, kick the vcpu. 1: newly pending. 0: was pending. */
static int64_t evtchn_set_pending(domain *d, uint32_t port, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint32_t bit = port % evtchn_width(d);
    int kick = 0;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, vcpu))
        return -EINVAL;
    if (word_set(&c, d, evtchn_word(d, port, 0), bit))
        return call_end(&c, 0);
    if (!word_test(&c, d, evtchn_word(d, port, 1), bit))
        kick = evtchn_raise(&c, d, port, vcpu);
    return call_end(&c, kick ? 3 : 1);
}

static int64_t evtchn_bit(domain *d, uint32_t port, int mask)
{
    struct call c = call_begin(d->m, d->domid, 0);
    int bit;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, 0))
        return -EINVAL;
    bit = word_test(&c, d, evtchn_word(d, port, mask), port % evtchn_width(d));
    return call_end(&c, bit);
}

static int64_t evtchn_is_pending(domain *d, uint32_t port) { return evtchn_bit(d, port, 0); }
static int64_t evtchn_is_masked(domain *d, uint32_t port) { return evtchn_bit(d, port, 1); }

static int evtchn_clear_pending(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, 0))
        return -EINVAL;
    word_clear(&c, d, evtchn_word(d, port, 0), port % evtchn_width(d));
    return (int)call_end(&c, 0);
}

/* Test and clear: 1 if it was pending. */
static int evtchn_take_pending(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);
    int pending;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, 0))
        return -EINVAL;
    pending = word_clear(&c, d, evtchn_word(d, port, 0), port % evtchn_width(d));
    return (int)call_end(&c, pending);
}

static int evtchn_mask(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, 0))
        return -EINVAL;
    word_set(&c, d, evtchn_word(d, port, 1), port % evtchn_width(d));
    return (int)call_end(&c, 0);
}

/* EVTCHNOP_unmask: 1 when the vcpu has to be kicked. */
static int64_t evtchn_unmask(domain *d, uint32_t port, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, ACCESS_HYPERVISOR);
    uint32_t bit = port % evtchn_width(d);
    int kick = 0;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, vcpu))
        return -EINVAL;
    if (word_clear(&c, d, evtchn_word(d, port, 1), bit) &&
        word_test(&c, d, evtchn_word(d, port, 0), bit))
        kick = evtchn_raise(&c, d, port, vcpu);
    return call_end(&c, kick);
}

/* The guest clears the mask bit itself; 1: the port is pending, its caller has to act. */
static int64_t evtchn_guest_unmask(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint32_t bit = port % evtchn_width(d);
    int pending;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, port, 0))
        return -EINVAL;
    word_clear(&c, d, evtchn_word(d, port, 1), bit);
    pending = word_test(&c, d, evtchn_word(d, port, 0), bit);
    return call_end(&c, pending);
}

/*
 * The guest's upcall: clear upcall_pending, exchange the selector, collect ports that are
 * pending and not masked, in ascending order; with ack their pending bits are cleared.
 * Selector bits of words that did not fit into `ports` are put back, and so is the upcall.
 */
static int64_t evtchn_scan(domain *d, uint32_t vcpu, uint32_t *ports, uint32_t max, int ack)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint32_t width = evtchn_width(d), n = 0;
    uint64_t selector;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, 0, vcpu))
        return -EINVAL;
    shared_exchange8(&c, vcpu_info(d, vcpu), 0);
    selector = d->is_32bit ? shared_exchange32(&c, vcpu_selector(d, vcpu), 0)
                           : shared_exchange64(&c, vcpu_selector(d, vcpu), 0);
    while (selector && !c.aborted) {
        uint32_t word = (uint32_t)__builtin_ctzll(selector);
        uint8_t *pending = evtchn_word(d, word * width, 0), *mask = evtchn_word(d, word * width, 1);
        uint64_t active = d->is_32bit
            ? shared_load32(&c, pending) & ~shared_load32(&c, mask)
            : shared_load64(&c, pending) & ~shared_load64(&c, mask);

        for (; active && n < max; active &= active - 1) {
            uint32_t bit = (uint32_t)__builtin_ctzll(active);

            ports[n++] = word * width + bit;
            if (ack)
                word_clear(&c, d, pending, bit);
        }
        if (active)
            break;
        selector &= selector - 1;
    }
    while (selector && !c.aborted) {
        uint32_t word = (uint32_t)__builtin_ctzll(selector);

        word_set(&c, d, vcpu_selector(d, vcpu), word);
        shared_exchange8(&c, vcpu_info(d, vcpu), 1);
        selector &= selector - 1;
    }
    return call_end(&c, n);
}

static int64_t evtchn_upcall_pending(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t pending;

    KERNEL_ENTER(d->m);
    if (evtchn_bad(d, 0, vcpu))
        return -EINVAL;
    pending = shared_load8(&c, vcpu_info(d, vcpu));
    return call_end(&c, pending);
}
