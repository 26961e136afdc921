/*
 * Where a driver sees pages: one stretch of address space in which every page is inaccessible
 * but those that are mapped, and between two maps lies at least one that is not. What was
 * unmapped is taken again as late as can be, so that a stale pointer hits nothing.
 */
#include <sys/mman.h>

#include "runtime.h"

enum { NEVER = 0, LIVE = 1, FREED = 2 };

struct page {
    uint32_t frame;
    uint32_t index;         /* within its map */
    uint32_t count;         /* of the map */
    uint8_t state, writable;
    uint16_t end;
    int64_t id;             /* Python's name of the map */
};

RUNTIME uint8_t *region;
static RUNTIME struct page *pages;
static RUNTIME unsigned long next, high;    /* where to look first; above all that was live */

void region_open(void)
{
    void *at = mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    void *table = mmap(NULL, REGION_PAGES * sizeof(*pages), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (at == MAP_FAILED || table == MAP_FAILED) {
        perror("xenpv: no address space for a driver's pages");
        abort();
    }
    region = at;
    pages = table;
}

static uint8_t *address(unsigned long page)
{
    return region + (page << PAGE_SHIFT);
}

/* `count` pages and one before and behind them, none of them live; 0 if there is no such run. */
static unsigned long room(unsigned count)
{
    unsigned long run = 0, at = next;

    if (count + 2ul > REGION_PAGES)
        return 0;
    for (unsigned long looked = 0; looked < 2 * REGION_PAGES; looked++, at++) {
        if (at == REGION_PAGES)
            at = run = 0;
        run = pages[at].state == LIVE ? 0 : run + 1;
        if (run == count + 2ul) {
            next = at;
            return at - count;
        }
    }
    return 0;
}

void *region_map(struct xenpv_end *end, int64_t id, const uint32_t *frames, unsigned count,
                 int writable)
{
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    unsigned long first = room(count);

    if (!first)
        return NULL;
    for (unsigned i = 0; i < count; i++) {
        struct page *page = &pages[first + i];

        if (mmap(address(first + i), PAGE_SIZE, protection, MAP_SHARED | MAP_FIXED, end->memory,
                 (off_t)frames[i] << PAGE_SHIFT) == MAP_FAILED)
            return NULL;
        if (first + i >= high)
            high = first + i + 1;
        *page = (struct page){ frames[i], i, count, LIVE, (uint8_t)writable,
                               (uint16_t)end->number, id };
    }
    return address(first);
}

long region_page_of(const struct xenpv_end *end, const void *p, int64_t *id)
{
    long page = (long)(((uintptr_t)p - (uintptr_t)region) >> PAGE_SHIFT);

    if (!in_region(p) || pages[page].state != LIVE || pages[page].end != end->number)
        return -1;
    *id = pages[page].id;
    return pages[page].index;
}

long region_find(const struct xenpv_end *end, const void *p)
{
    long page = (long)(((uintptr_t)p - (uintptr_t)region) >> PAGE_SHIFT);

    if (!in_region(p) || pages[page].state != LIVE || pages[page].end != end->number ||
        pages[page].index || (uintptr_t)p % PAGE_SIZE)
        return -1;
    return page;
}

int64_t region_id(long page)
{
    return pages[page].id;
}

unsigned region_count(long page)
{
    return pages[page].count;
}

void region_unmap(long page)
{
    unsigned count = pages[page].count;

    mmap(address((unsigned long)page), count * PAGE_SIZE, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    for (unsigned i = 0; i < count; i++)
        pages[page + i].state = FREED;
}

/* All that the end has mapped. */
void region_drop(struct xenpv_end *end)
{
    for (unsigned long at = 0; at < high; at++)
        if (pages[at].state == LIVE && pages[at].end == end->number && !pages[at].index)
            region_unmap((long)at);
}

/* Nothing is live, and nobody is left who could have a stale pointer. */
void region_reset(void)
{
    memset(pages, 0, high * sizeof(*pages));
    next = high = 0;
}

static _Noreturn void refuse_beside(uintptr_t at, const void *p, size_t size, uint32_t kind,
                                    uint64_t pc)
{
    unsigned long page = at >> PAGE_SHIFT;
    const char *verb = kind == ACCESS_READ ? "reads" : "writes";
    long after = -1, before = -1;

    if (pages[page].state == FREED)
        entry_fail(FAILED_FREED, pc, p, size, 0,
                   "%s %zu bytes of a page that was given back, at offset %#lx", verb, size,
                   at % PAGE_SIZE);
    if (page && pages[page - 1].state == LIVE)
        after = (long)(at % PAGE_SIZE);
    if (page + 1 < REGION_PAGES && pages[page + 1].state == LIVE)
        before = (long)(PAGE_SIZE - at % PAGE_SIZE);
    if (after >= 0 && (before < 0 || after <= before))
        entry_fail(FAILED_GUARD, pc, p, size, after,
                   "%s %zu bytes, %ld bytes past the end of %s", verb, size, after,
                   pages[page - 1].count > 1 ? "adjacent pages" : "a page");
    if (before >= 0)
        entry_fail(FAILED_GUARD, pc, p, size, -before,
                   "%s %zu bytes, %ld bytes before the start of a page", verb, size, before);
    entry_fail(FAILED_GUARD, pc, p, size, 0, "%s %zu bytes where no page is mapped", verb, size);
}

/* An access is about to happen: told page by page, or refused. */
void touched(const void *p, size_t size, uint32_t kind, uint64_t pc)
{
    uintptr_t at = (uintptr_t)p - (uintptr_t)region;
    struct entry *me = current;
    size_t left = size;

    while (left) {
        struct page *page = &pages[at >> PAGE_SHIFT];
        uint32_t offset = at % PAGE_SIZE;
        size_t part = PAGE_SIZE - offset < left ? PAGE_SIZE - offset : left;
        struct xenpv_end *end = &ends[page->end];

        if (at >= REGION_BYTES || page->state != LIVE)
            refuse_beside(at, p, size, kind, pc);
        if (kind != ACCESS_READ && !page->writable)
            entry_fail(FAILED_READONLY, pc, p, size, 0,
                       "writes %zu bytes of a page that was mapped to be read, at offset %#x",
                       size, offset);
        if (me) {
            int refused;

            end->pc = pc;
            current = NULL;
            refused = end->access(end->machine, end->domid, kind, page->frame, offset,
                                  (uint32_t)part);
            current = me;
            if (refused)
                entry_abort();
        }
        at += part;
        left -= part;
    }
}

/* memmove by the runtime itself: what of it lies in the region is told of. */
void copy_seen(void *to, const void *from, size_t size, uint64_t pc)
{
    if (in_region(from))
        touched(from, size, ACCESS_READ, pc);
    if (in_region(to))
        touched(to, size, ACCESS_WRITE, pc);
    memmove(to, from, size);
}
