/* A backend that does the one wrong thing that the key `misdeed` names, when it is to connect.
 * The line of each is the one that says so in its comment. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

static volatile int zero;
static volatile uint64_t sink;
static void *kept;
static int counter, late;
static uint8_t *page;           /* the ring, mapped */
static xenpv_ref ring_ref;

static void nothing(xenpv_end *end, void *context)
{
    (void)end;
    (void)context;
}

static void changed(xenpv_end *end, void *context, const char *path)
{
    (void)end;
    (void)context;
    (void)path;
}

static int deeper(int level)
{                                                   /* recursion */
    volatile char room[512];

    room[level % 512] = 1;
    return deeper(level + 1) + room[0];
}

static int is(const char *name, const char *wanted)
{
    return !strcmp(name, wanted);
}

static void memory(xenpv_end *end, const char *name)
{
    uint8_t *own = xenpv_alloc_pages(end, 2);

    if (is(name, "past the end"))
        sink = *(uint32_t *)(page + 4096 + 16);     /* past the end */
    if (is(name, "across the end"))
        memcpy(page + 4090, "0123456789", 10);      /* across the end */
    if (is(name, "past own pages"))
        own[8192] = 1;                              /* past own pages */
    if (is(name, "before the start"))
        page[-8] = 1;                               /* before the start */
    if (is(name, "read-only")) {
        void *readable;

        xenpv_map(end, &ring_ref, 1, 1, &readable);
        sink = *(uint8_t *)readable;
        *(uint8_t *)readable = 1;                   /* read-only */
    }
    if (is(name, "unmapped")) {
        xenpv_unmap(end, page);
        sink = page[64];                            /* unmapped */
    }
    if (is(name, "null"))
        sink = *(volatile uint32_t *)(uintptr_t)zero;   /* null */
    if (is(name, "wild"))
        *(volatile uint32_t *)0x123456789000 = 1;   /* wild */
    if (is(name, "unseen"))
        sink = strlen((char *)memset(page, 1, 4096));   /* unseen */
    xenpv_free_pages(end, own);
}

/* As a library that is not built with the hooks would do it. */
__attribute__((no_sanitize("thread"), no_sanitize_coverage)) static int recurse_unseen(int level)
{
    volatile char room[4096];

    room[level % 4096] = 1;
    return recurse_unseen(level + 1) + room[0];
}

static void ways_out(xenpv_end *end, const char *name)
{
    if (is(name, "loop"))
        for (; !zero; sink++);                      /* loop */
    if (is(name, "empty loop"))
        for (;;);                                   /* empty loop */
    if (is(name, "recursion"))
        deeper(0);
    if (is(name, "assert"))
        assert(zero);                               /* assert */
    if (is(name, "abort"))
        abort();                                    /* abort */
    if (is(name, "exit"))
        exit(3);                                    /* exit */
    if (is(name, "division"))
        sink = (uint64_t)(77 / zero);               /* division */
    if (is(name, "asks"))
        for (;;) xenpv_now(end);                    /* asks */
    if (is(name, "kill"))
        _exit(9);                                   /* kill */
    if (is(name, "shot"))
        raise(SIGKILL);                             /* shot */
    if (is(name, "deep"))
        recurse_unseen(0);                          /* deep */
    if (is(name, "sleep"))
        pause();                                    /* sleep */
}

static void heap(const char *name)
{
    char *block = malloc(10);                       /* overflow */

    if (is(name, "overflow"))
        block[10] = 1;
    free(block);
    if (is(name, "double free"))
        free(block);                                /* double free */
    if (is(name, "wild free"))
        free(page);                                 /* wild free */
    if (is(name, "leak"))
        kept = malloc(24);                          /* leak */
}

static void calls(xenpv_end *end, const char *name)
{
    void *own = xenpv_alloc_pages(end, 1);
    int ref;

    if (is(name, "not its end"))
        xenpv_notify((xenpv_end *)page, 1);         /* not its end */
    if (is(name, "grant of the other's"))
        xenpv_grant_access(end, page, 0);           /* grant of the other's */
    if (is(name, "grant of the heap"))
        xenpv_grant_access(end, &zero, 0);          /* grant of the heap */
    if (is(name, "unmap of own"))
        xenpv_unmap(end, own);                      /* unmap of own */
    if (is(name, "free of the other's"))
        xenpv_free_pages(end, page);                /* free of the other's */
    if (is(name, "free inside"))
        xenpv_free_pages(end, page + 8);            /* free inside */
    if (is(name, "granted"))
        if (xenpv_grant_access(end, own, 0) >= 0)
            xenpv_free_pages(end, own);             /* granted */
    if (is(name, "no port"))
        xenpv_notify(end, 77);                      /* no port */
    if (is(name, "no watch"))
        xenpv_unwatch(end, 77);                     /* no watch */
    if (is(name, "no state"))
        xenpv_switch_state(end, 77);                /* no state */
    if (is(name, "no transaction"))
        xenpv_transaction_end(end, 77, 0);          /* no transaction */
    if (is(name, "no request"))
        xenpv_complete(end, 77, 1, NULL, 0);        /* no request */
    if (is(name, "no bridge"))
        xenpv_transmit(end, "frame", 5);            /* no bridge */
    if (is(name, "no pages"))
        xenpv_alloc_pages(end, 0);                  /* no pages */
    if (is(name, "too much"))
        xenpv_image_read(end, 0, own, 1u << 30);    /* too much */
    if (is(name, "left map"))
        xenpv_map(end, &ring_ref, 1, 0, &kept);     /* left map */
    if (is(name, "left port"))
        xenpv_alloc_unbound(end, nothing, NULL);    /* left port */
    if (is(name, "left watch"))
        xenpv_watch(end, "mine", changed, NULL);    /* left watch */
    late = is(name, "left timer");
    if (is(name, "left transaction"))
        xenpv_transaction_start(end);               /* left transaction */
    if (is(name, "left page"))
        kept = xenpv_alloc_pages(end, 1);           /* left page */
    if (is(name, "left reference")) {
        ref = xenpv_grant_access(end, own, 0);      /* left reference */
        sink = (uint64_t)ref;
        return;
    }
    xenpv_free_pages(end, own);
}

static int misdo(xenpv_end *end)
{
    char name[64] = "";

    if (xenpv_gather(end, 0, "ring-ref", "%" SCNu32, &ring_ref) != 1 ||
        xenpv_map(end, &ring_ref, 1, 0, (void **)&page))
        return -EINVAL;
    xenpv_read(end, 0, "misdeed", name, sizeof(name));
    memory(end, name);
    ways_out(end, name);
    heap(name);
    calls(end, name);
    if (is(name, "refused"))
        return -EBUSY;
    if (is(name, "count"))
        xenpv_printf(end, 0, "counter", "%d", ++counter);
    return xenpv_switch_state(end, XenbusStateConnected);
}

static int otherend_changed(xenpv_end *end, int state)
{
    return state == XenbusStateInitialised ? misdo(end) : 0;
}

static void removed(xenpv_end *end)
{
    if (page)
        xenpv_unmap(end, page);
    page = NULL;
    if (late)
        xenpv_after(end, 5, nothing, NULL);         /* left timer */
}

const struct xenpv_driver xenpv_driver = {
    .name = "misdeeds",
    .otherend_changed = otherend_changed,
    .remove = removed,
};
