/*
 * The driver's heap: who allocated what, and where. What is left when its end goes is an error,
 * a write beyond a block is seen when the block is freed. What was freed is not used again for
 * a while, and is full of FREED_BYTE.
 */
#include "runtime.h"

#define CANARY 0x5e1dca11ab1e0b5eull
#define FREED_BYTE 0xdd
#define WAITING 256u

static RUNTIME struct block *waiting[WAITING];
static RUNTIME unsigned freed;


static void *block_new(size_t size, uint64_t pc)
{
    struct block *block;
    uint64_t canary = CANARY;

    if (size > PTRDIFF_MAX - sizeof(*block) - sizeof(canary))
        return NULL;
    block = malloc(sizeof(*block) + size + sizeof(canary));
    if (!block)
        return NULL;
    block->size = size;
    block->pc = pc;
    block->canary = CANARY;
    block->end = current ? current->end : NULL;
    block->next = block->previous = block;
    if (block->end) {
        struct block *head = &block->end->blocks;

        block->next = head;
        block->previous = head->previous;
        head->previous->next = block;
        head->previous = block;
    }
    memcpy((uint8_t *)(block + 1) + size, &canary, sizeof(canary));
    return block + 1;
}

static int is_whole(const struct block *block)
{
    uint64_t canary;

    memcpy(&canary, (const uint8_t *)(block + 1) + block->size, sizeof(canary));
    return canary == CANARY;
}

static struct block *block_of(void *p, uint64_t pc)
{
    struct block *block = (struct block *)p - 1;

    if (in_region(p) || (uintptr_t)p % 16)
        entry_fail(FAILED_HEAP, pc, p, 0, 0, "frees %p, which is of no malloc", p);
    if (block->canary == ~CANARY)
        entry_fail(FAILED_HEAP, pc, p, 0, 0, "frees %p, which was freed", p);
    if (block->canary != CANARY)
        entry_fail(FAILED_HEAP, pc, p, 0, 0, "frees %p, which is of no malloc", p);
    if (!is_whole(block))
        entry_fail(FAILED_HEAP, block->pc, p, block->size, 0,
                   "allocates %zu bytes here, and wrote beyond them", block->size);
    return block;
}

static void block_free(struct block *block)
{
    block->previous->next = block->next;
    block->next->previous = block->previous;
    block->canary = ~CANARY;
    memset(block + 1, FREED_BYTE, block->size);
    free(waiting[freed % WAITING]);
    waiting[freed++ % WAITING] = block;
}

void *__wrap_malloc(size_t size)
{
    return block_new(size, CALLER);
}

void *__wrap_calloc(size_t count, size_t size)
{
    void *p;

    if (size && count > PTRDIFF_MAX / size)
        return NULL;
    p = block_new(count * size, CALLER);
    return p ? memset(p, 0, count * size) : NULL;
}

void __wrap_free(void *p)
{
    if (p)
        block_free(block_of(p, CALLER));
}

void *__wrap_realloc(void *p, size_t size)
{
    struct block *old = p ? block_of(p, CALLER) : NULL;
    void *fresh = block_new(size, CALLER);

    if (fresh && old) {
        memcpy(fresh, p, old->size < size ? old->size : size);
        block_free(old);
    }
    return fresh;
}

char *__wrap_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = block_new(size, CALLER);

    return copy ? memcpy(copy, text, size) : NULL;
}

/* The end is gone: so is what it left. */
void heap_drop(struct xenpv_end *end)
{
    while (end->blocks.next != &end->blocks)
        block_free(end->blocks.next);
}
