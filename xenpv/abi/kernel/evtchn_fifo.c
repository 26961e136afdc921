/*
 * The FIFO event channel ABI: an array of event words and one control block per vcpu, all
 * in pages of the guest, and 16 queues per vcpu linked through the words
 * (xen/common/event_fifo.c; public/event_channel.h).
 *
 * A producer links under the lock of the queue, which a single thread has anyway; the guest
 * unlinks at any moment, so the tail's word changes under the producer.
 */
#include "domain.h"

#define WORDS_PER_PAGE (FRAME_SIZE / 4)
#define MAX_ARRAY_PAGES (EVTCHN_FIFO_NR_CHANNELS / WORDS_PER_PAGE)
#define NR_QUEUES EVTCHN_FIFO_MAX_QUEUES
#define CONTROL_SIZE 72u        /* sizeof(struct evtchn_fifo_control_block) */

#define WORD_PENDING (1u << EVTCHN_FIFO_PENDING)
#define WORD_MASKED (1u << EVTCHN_FIFO_MASKED)
#define WORD_LINKED (1u << EVTCHN_FIFO_LINKED)
#define WORD_BUSY (1u << EVTCHN_FIFO_BUSY)
#define WORD_LINK EVTCHN_FIFO_LINK_MASK

struct fifo_vcpu {
    uint8_t *control;           /* NULL: not registered yet */
    uint32_t tail[NR_QUEUES];   /* Xen's own: a guest cannot mislead it about the tail */
};

struct fifo {
    uint32_t nr_pages;
    uint8_t *pages[MAX_ARRAY_PAGES];
    struct fifo_vcpu vcpu[MAX_VCPUS];
};

static inline uint8_t *fifo_word(const domain *d, uint32_t port)
{
    uint32_t page = port / WORDS_PER_PAGE;

    if (page >= d->fifo->nr_pages)
        return NULL;
    return d->fifo->pages[page] + port % WORDS_PER_PAGE * 4;
}

/* 1: the link is written. 0: the word is not LINKED, its queue is empty. -1: it changed. */
static inline int link_try(struct call *c, uint8_t *word, uint32_t *seen, uint32_t link)
{
    if (!(*seen & WORD_LINKED))
        return 0;
    return shared_cas32(c, word, seen, (*seen & ~(WORD_BUSY | WORD_LINK)) | link) ? 1 : -1;
}

/*
 * Write the tail's LINK if it is still LINKED. A guest that keeps to the rules can change a
 * BUSY word four times at most (mask, clear PENDING, unmask is held off, unlink).
 */
static int link_set(struct call *c, uint8_t *word, uint32_t link)
{
    uint32_t seen = shared_load32(c, word);
    int linked = link_try(c, word, &seen, link);

    if (linked >= 0)
        return linked;
    shared_fetch_or32(c, word, WORD_BUSY);
    seen = shared_load32(c, word);
    for (int more = 0; more < 4 && !c->aborted; more++) {
        linked = link_try(c, word, &seen, link);
        if (linked > 0)
            return 1;
        if (!linked)
            break;
    }
    shared_fetch_and32(c, word, ~WORD_BUSY);
    return linked != 0;         /* out of tries: taken for linked, the event is lost */
}

/* Put a port that just became LINKED on its queue; whether the queue's head was written. */
static int queue_append(struct call *c, evtchn *e, struct fifo_vcpu *v)
{
    struct fifo_vcpu *old = &e->d->fifo->vcpu[e->last_vcpu];
    uint32_t *tail = &v->tail[e->priority];
    int linked = 0;

    /* It was a tail, so that queue is empty now: what is added there must not follow it. */
    if (old->tail[e->last_priority] == e->port)
        old->tail[e->last_priority] = 0;
    e->last_vcpu = e->vcpu;
    e->last_priority = e->priority;
    if (*tail)
        linked = link_set(c, fifo_word(e->d, *tail), e->port);
    if (!linked)
        shared_store32(c, v->control + 8 + 4 * e->priority, e->port);
    *tail = e->port;
    return !linked;
}

static int set_pending_fifo(struct call *c, evtchn *e)
{
    domain *d = e->d;
    struct fifo_vcpu *v = &d->fifo->vcpu[e->vcpu];
    uint8_t *word = fifo_word(d, e->port);
    int raised;

    if (!word) {
        e->saved = 1;
        return 0;
    }
    raised = shared_fetch_or32(c, word, WORD_PENDING) & WORD_PENDING ? 0 : RAISED_NEW;
    if (!v->control)
        return raised;          /* not linked: the guest may not unmask before it has one */
    if (shared_load32(c, word) & WORD_MASKED ||
        shared_fetch_or32(c, word, WORD_LINKED) & WORD_LINKED)
        return raised;
    if (queue_append(c, e, v) && !c->aborted &&
        !(shared_fetch_or32(c, v->control, 1u << e->priority) >> e->priority & 1))
        raised |= vcpu_mark(c, d, e->vcpu);
    return raised;
}

static int unmask_fifo(struct call *c, evtchn *e)
{
    uint8_t *word = fifo_word(e->d, e->port);

    if (!word)
        return 0;
    shared_fetch_and32(c, word, ~WORD_MASKED);
    return shared_load32(c, word) & WORD_PENDING ? set_pending_fifo(c, e) : 0;
}

/* The guest clears MASKED, unless the word is BUSY: -EBUSY, it has to try again. */
static int guest_unmask_fifo(struct call *c, uint8_t *word)
{
    uint32_t seen = shared_load32(c, word);

    do {
        if (seen & WORD_BUSY)
            return -EBUSY;
    } while (!shared_cas32(c, word, &seen, seen & ~WORD_MASKED) && !c->aborted);
    return shared_load32(c, word) >> EVTCHN_FIFO_PENDING & 1;
}

/* EVTCHNOP_init_control; the caller has checked offset and vcpu. */
static int fifo_init_control(domain *d, uint32_t pfn, uint32_t offset, uint32_t vcpu)
{
    struct fifo *fifo = d->fifo;
    uint8_t *page;

    KERNEL_ENTER(d->m);
    if (vcpu >= d->nr_vcpus || offset > FRAME_SIZE - CONTROL_SIZE)
        return -EINVAL;
    if (fifo && fifo->vcpu[vcpu].control)
        return -EINVAL;
    if (!fifo && !(fifo = calloc(1, sizeof(*fifo))))
        return -ENOMEM;
    page = page_hold(d, pfn);
    if (!page) {
        if (!d->fifo)
            free(fifo);
        return -EINVAL;
    }
    fifo->vcpu[vcpu].control = page + offset;
    d->fifo = fifo;
    return 0;
}

/* EVTCHNOP_expand_array: the first port of the new page. */
static int64_t fifo_expand_array(domain *d, uint32_t pfn)
{
    uint8_t *page;

    KERNEL_ENTER(d->m);
    if (!d->fifo)
        return -EOPNOTSUPP;
    if (d->fifo->nr_pages >= MAX_ARRAY_PAGES)
        return -ENOSPC;
    page = page_hold(d, pfn);
    if (!page)
        return -EINVAL;
    d->fifo->pages[d->fifo->nr_pages] = page;
    return (int64_t)d->fifo->nr_pages++ * WORDS_PER_PAGE;
}

static int fifo_destroy(domain *d)
{
    struct fifo *fifo = d->fifo;

    if (!fifo)
        return 0;
    for (uint32_t vcpu = 0; vcpu < MAX_VCPUS; vcpu++)
        if (fifo->vcpu[vcpu].control)
            page_drop(d, fifo->vcpu[vcpu].control);
    for (uint32_t page = 0; page < fifo->nr_pages; page++)
        page_drop(d, fifo->pages[page]);
    free(fifo);
    d->fifo = NULL;
    return 0;
}

static int evtchn_is_fifo(domain *d) { return d->fifo != NULL; }

/* Whether a frame is one of its array pages or has a control block: for the access log. */
static int fifo_has_frame(domain *d, uint32_t frame)
{
    const uint8_t *page = frame_address(d->m, frame);

    if (!d->fifo)
        return 0;
    for (uint32_t n = 0; n < d->fifo->nr_pages; n++)
        if (d->fifo->pages[n] == page)
            return 1;
    for (uint32_t vcpu = 0; vcpu < d->nr_vcpus; vcpu++) {
        const uint8_t *control = d->fifo->vcpu[vcpu].control;

        if (control && control >= page && control < page + FRAME_SIZE)
            return 1;
    }
    return 0;
}

/*
 * The guest's steps: its consumer loop is in bus/evtchn_fifo.py. -EINVAL where it has no
 * control block or no word; it reads head and link from memory of its own.
 */
static inline uint8_t *fifo_control(const domain *d, uint32_t vcpu)
{
    return d->fifo && vcpu < MAX_VCPUS ? d->fifo->vcpu[vcpu].control : NULL;
}

/* Exchange `ready` with 0. */
static int64_t fifo_take_ready(domain *d, uint32_t vcpu)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *control = fifo_control(d, vcpu);
    uint32_t ready;

    KERNEL_ENTER(d->m);
    if (!control)
        return -EINVAL;
    ready = shared_exchange32(&c, control, 0);
    return call_end(&c, ready);
}

static int64_t fifo_head(domain *d, uint32_t vcpu, uint32_t priority)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *control = fifo_control(d, vcpu);
    uint32_t head;

    KERNEL_ENTER(d->m);
    if (!control || priority >= NR_QUEUES)
        return -EINVAL;
    barrier_read();
    head = shared_load32(&c, control + 8 + 4 * priority);
    return call_end(&c, head);
}

/* Clear LINKED and LINK in one step: the word before it, whose LINK is 0 at the queue's end. */
static int64_t fifo_unlink(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *word = d->fifo ? fifo_word(d, port) : NULL;
    uint32_t seen;

    KERNEL_ENTER(d->m);
    if (!word)
        return -EINVAL;
    seen = shared_load32(&c, word);
    while (!shared_cas32(&c, word, &seen, seen & ~(WORD_LINKED | WORD_LINK)) && !c.aborted)
        ;
    return call_end(&c, seen);
}

/* The whole word, read once: for tests and debug output. */
static int64_t fifo_read_word(domain *d, uint32_t port)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *word = d->fifo ? fifo_word(d, port) : NULL;
    uint32_t seen;

    KERNEL_ENTER(d->m);
    if (!word)
        return -EINVAL;
    seen = shared_load32(&c, word);
    return call_end(&c, seen);
}
