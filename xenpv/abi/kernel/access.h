/*
 * Every load and store of memory that another domain may see goes through here.
 *
 * The hook is told of an access before it happens. It may change the memory as a racing
 * peer would, let the peer run, or return non-zero: then the access and all later ones
 * of this call are skipped (loads give 0) and the call ends with KERNEL_E_ABORTED.
 */
#ifndef XENPV_ACCESS_H
#define XENPV_ACCESS_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL_E_FORKED (-1000)
#define KERNEL_E_ABORTED (-1001)
#define KERNEL_E_OVERFLOW (-1002)

#define ACCESS_READ 0
#define ACCESS_WRITE 1
#define ACCESS_ATOMIC 2
#define ACCESS_HYPERVISOR 0x10
#define ACCESS_COPY 0x20

#define FRAME_SHIFT 12
#define FRAME_SIZE 4096u
#define FRAME_NONE 0xffffffffu

typedef int (*access_hook)(void *context, uint32_t actor, uint32_t kind,
                           uint32_t frame, uint32_t offset, uint32_t size);

struct domain;

struct frame_info {
    uint32_t refs;      /* 0: free; the owner holds one, each map, pin and page_hold one more */
    uint16_t owner;     /* domid, DOMID_XEN for frames of the hypervisor */
    uint16_t domid;     /* whose page it is: the owner, or for whom Xen made it */
    uint32_t link;      /* of Xen's: the pfn where that domain sees it; unhooked: the next such */
};

struct machine {
    uint8_t *base;
    struct frame_info *frames;
    uint32_t *free_list;
    uint32_t nr_frames;
    uint32_t nr_free_list;
    uint32_t high_water;    /* frames at or above were never handed out */
    uint32_t free_pages;    /* not promised to any domain: reservations count before they are touched */
    uint32_t outstanding_claims;    /* of free_pages those that XENMEM_claim_pages set aside */
    uint32_t drained;       /* a relinquished domain lost its last shared frame; who reads it, clears it */
    struct domain **domains;    /* by domid, dead ones too: whose tot_pages a freed frame leaves */
    int forked;
    access_hook hook;
    void *hook_context;
    struct access_log *log;  /* log.c: while one is on, `hook` is its own and calls the other */
};

typedef struct machine machine;

struct call {
    machine *m;
    uint32_t actor;
    uint32_t flags;
    int aborted;
};

static inline struct call call_begin(machine *m, uint32_t actor, uint32_t flags)
{
    struct call c = { m, actor, flags, 0 };
    return c;
}

static __attribute__((noinline)) int access_report(struct call *c, uint32_t kind, const void *p,
                                                   uint32_t size)
{
    uint64_t at;

    if (c->aborted)
        return 1;
    at = (uint64_t)((const uint8_t *)p - c->m->base);
    if (c->m->hook(c->m->hook_context, c->actor, kind | c->flags, (uint32_t)(at >> FRAME_SHIFT),
                   (uint32_t)(at & (FRAME_SIZE - 1)), size))
        c->aborted = 1;
    return c->aborted;
}

/* Non-zero: the access must not happen. */
static inline int access_begins(struct call *c, uint32_t kind, const void *p, uint32_t size)
{
    if (__builtin_expect(c->m->hook == NULL, 1))
        return 0;
    return access_report(c, kind, p, size);
}

#define DEFINE_SHARED(bits)                                                                      \
    static inline uint##bits##_t shared_load##bits(struct call *c, const void *p)               \
    {                                                                                           \
        if (access_begins(c, ACCESS_READ, p, bits / 8))                                         \
            return 0;                                                                           \
        return __atomic_load_n((const uint##bits##_t *)p, __ATOMIC_RELAXED);                    \
    }                                                                                           \
    static inline void shared_store##bits(struct call *c, void *p, uint##bits##_t v)            \
    {                                                                                           \
        if (access_begins(c, ACCESS_WRITE, p, bits / 8))                                        \
            return;                                                                             \
        __atomic_store_n((uint##bits##_t *)p, v, __ATOMIC_RELAXED);                             \
    }                                                                                           \
    static inline uint##bits##_t shared_fetch_or##bits(struct call *c, void *p, uint##bits##_t v) \
    {                                                                                           \
        if (access_begins(c, ACCESS_ATOMIC, p, bits / 8))                                       \
            return 0;                                                                           \
        return __atomic_fetch_or((uint##bits##_t *)p, v, __ATOMIC_SEQ_CST);                     \
    }                                                                                           \
    static inline uint##bits##_t shared_fetch_and##bits(struct call *c, void *p, uint##bits##_t v) \
    {                                                                                           \
        if (access_begins(c, ACCESS_ATOMIC, p, bits / 8))                                       \
            return 0;                                                                           \
        return __atomic_fetch_and((uint##bits##_t *)p, v, __ATOMIC_SEQ_CST);                    \
    }                                                                                           \
    static inline uint##bits##_t shared_exchange##bits(struct call *c, void *p, uint##bits##_t v) \
    {                                                                                           \
        if (access_begins(c, ACCESS_ATOMIC, p, bits / 8))                                       \
            return 0;                                                                           \
        return __atomic_exchange_n((uint##bits##_t *)p, v, __ATOMIC_SEQ_CST);                   \
    }                                                                                           \
    static inline int shared_cas##bits(struct call *c, void *p, uint##bits##_t *expected,       \
                                       uint##bits##_t v)                                        \
    {                                                                                           \
        if (access_begins(c, ACCESS_ATOMIC, p, bits / 8))                                       \
            return 0;                                                                           \
        return __atomic_compare_exchange_n((uint##bits##_t *)p, expected, v, 0,                 \
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
    }

DEFINE_SHARED(8)
DEFINE_SHARED(16)
DEFINE_SHARED(32)
DEFINE_SHARED(64)

/* A range is reported once; treat it as one fetch per byte. */
static inline void shared_copy_out(struct call *c, void *private, const void *shared, size_t n)
{
    if (access_begins(c, ACCESS_READ, shared, (uint32_t)n))
        memset(private, 0, n);
    else
        memcpy(private, shared, n);
}

static inline void shared_copy_in(struct call *c, void *shared, const void *private, size_t n)
{
    if (!access_begins(c, ACCESS_WRITE, shared, (uint32_t)n))
        memcpy(shared, private, n);
}

static inline void shared_clear(struct call *c, void *shared, size_t n)
{
    if (!access_begins(c, ACCESS_WRITE, shared, (uint32_t)n))
        memset(shared, 0, n);
}

/* Xen's xen_mb, xen_rmb, xen_wmb (arch-x86/xen.h has no portable form of them). */
#define barrier_full() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define barrier_read() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define barrier_write() __atomic_thread_fence(__ATOMIC_RELEASE)

#define KERNEL_ENTER(machine_)                                                                   \
    do {                                                                                        \
        if (__builtin_expect((machine_)->forked, 0))                                            \
            return KERNEL_E_FORKED;                                                             \
    } while (0)

static inline int64_t call_end(const struct call *c, int64_t result)
{
    return __builtin_expect(c->aborted, 0) ? KERNEL_E_ABORTED : result;
}

#endif
