/* The runtime's own parts, for each other. It is compiled without -fsanitize=thread. */
#ifndef XENPV_RUNTIME_H
#define XENPV_RUNTIME_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xenpv_end.h"
#include "wire.h"

/* Python raised: the driver's call ends. */
#define RESULT_ABORT INT64_MIN

#define ACCESS_READ 0       /* abi/kernel/access.h */
#define ACCESS_WRITE 1
#define ACCESS_ATOMIC 2

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ul
#define REGION_PAGES 65536ul
#define REGION_BYTES (REGION_PAGES << PAGE_SHIFT)
#define ENDS_MAX 64
#define NAME_SIZE 256
#define STACK_BYTES (1ul << 20)

typedef int64_t (*host_call)(void *context, const struct xenpv_call *call, const void *in,
                             void *out);
typedef int (*host_access)(void *machine, uint32_t actor, uint32_t kind, uint32_t frame,
                           uint32_t offset, uint32_t size);

struct block {              /* of the heap: heap.c */
    struct block *next, *previous;
    size_t size;
    uint64_t pc;
    struct xenpv_end *end;
    uint64_t canary;
};

struct xenpv_end {
    int used;
    int number;
    int memory;             /* descriptor of the arena */
    uint32_t domid, otherend_id;
    host_call call;
    host_access access;
    void *context, *machine;
    void *data;
    char nodename[NAME_SIZE], otherend[NAME_SIZE];
    struct xenpv_failure failure;
    struct block blocks;    /* head of the ring of them */
    uint64_t pc;            /* of the access or call under way */
};

/* One call of the driver; it lives on the stack of that call. */
struct entry {
    jmp_buf jump;
    struct xenpv_end *end;
    int64_t budget;
    uint64_t steps;
    uintptr_t stack;
    int ending;
};

/* The call that runs, NULL while the driver does not: also while it waits for Python. */
extern struct entry *current;
extern uint64_t *newest_step;       /* where in the driver; in memory that outlives it */
extern uint8_t *region;
extern struct xenpv_end ends[ENDS_MAX];

void region_open(void);
void *region_map(struct xenpv_end *end, int64_t id, const uint32_t *frames, unsigned count,
                 int writable);
/* The first page's number; -1 if `pages` is no start of a live map of the end. */
long region_find(const struct xenpv_end *end, const void *pages);
int64_t region_id(long page);
unsigned region_count(long page);
void region_unmap(long page);
void region_drop(struct xenpv_end *end);
void region_reset(void);
/* Number within its map and id of the page at `p`; -1 if it is no live one of the end. */
long region_page_of(const struct xenpv_end *end, const void *p, int64_t *id);

void touched(const void *address, size_t size, uint32_t kind, uint64_t pc);
void copy_seen(void *to, const void *from, size_t size, uint64_t pc);

_Noreturn void entry_fail(int kind, uint64_t pc, const void *address, size_t size, int64_t detail,
                          const char *format, ...) __attribute__((format(printf, 6, 7)));
_Noreturn void entry_abort(void);

void signals_catch(void);
void signals_leave(void);
void watchdog_arm(unsigned milliseconds);

void heap_drop(struct xenpv_end *end);

/* What Python calls: entry.c. */
uint64_t xenpv_open(void);
struct xenpv_end *xenpv_end_new(host_call call, host_access access, void *context, void *machine,
                                int memory, uint32_t domid, uint32_t otherend_id,
                                const char *nodename, const char *otherend);
void xenpv_end_free(struct xenpv_end *end);
const struct xenpv_failure *xenpv_end_failure(struct xenpv_end *end);
uint64_t xenpv_end_pc(struct xenpv_end *end);
uint32_t xenpv_end_blocks(struct xenpv_end *end, uint64_t *size, uint64_t *pc);
int xenpv_enter(struct xenpv_end *end, const struct xenpv_enter *enter, const void *given,
                int64_t *result);

/* Of the runtime, so that the driver's own memory can be told from it. */
#define RUNTIME __attribute__((section("xenpv_runtime")))

#define CALLER ((uint64_t)(uintptr_t)__builtin_return_address(0) - 1)

static inline int in_region(const void *p)
{
    return (uintptr_t)p - (uintptr_t)region < REGION_BYTES;
}

#endif
