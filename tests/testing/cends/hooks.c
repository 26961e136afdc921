/* Accesses of every kind to the ring's page, each at an offset of its own. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

struct triple {
    uint32_t a, b, c;
};

struct unaligned {
    uint8_t odd;
    uint32_t word;
    uint64_t wide;
} __attribute__((packed));

static uint8_t *page;
static volatile uint64_t sink;

#define AT(type, offset) (*(type *)(page + (offset)))

static void plain(void)
{
    sink = AT(uint8_t, 0x100);
    sink = AT(uint16_t, 0x110);
    sink = AT(uint32_t, 0x120);
    sink = AT(uint64_t, 0x130);
    AT(uint8_t, 0x140) = 1;
    AT(uint16_t, 0x150) = 2;
    AT(uint32_t, 0x160) = 3;
    AT(uint64_t, 0x170) = 4;
    AT(unsigned __int128, 0x180) = 5;
    sink = AT(volatile uint32_t, 0x190);
    AT(volatile uint16_t, 0x1a0) = 6;
    sink = AT(struct unaligned, 0x1b0).word;
    AT(struct unaligned, 0x1c0).wide = 7;
    AT(uint32_t, 0x1d0)++;
}

static void ranges(void)
{
    uint8_t private[300];
    struct triple mine = { 1, 2, 3 }, theirs;

    memcpy(private, page + 0x200, 112);
    memcpy(page + 0x280, private, 100);
    memmove(page + 0x300, page + 0x310, 40);
    memset(page + 0x380, 0, 64);
    sink = (uint64_t)memcmp(page + 0x400, private, 8);
    AT(struct triple, 0x420) = mine;
    theirs = AT(struct triple, 0x440);
    sink = theirs.a + theirs.b + theirs.c;
}

static int atomics(void)
{
    uint32_t *word = &AT(uint32_t, 0x500), expected = 9;
    uint64_t *wide = &AT(uint64_t, 0x520);
    int right = 1;

    __atomic_store_n(word, 8, __ATOMIC_RELEASE);
    right &= __atomic_load_n(word, __ATOMIC_ACQUIRE) == 8;
    right &= __atomic_fetch_add(word, 2, __ATOMIC_RELAXED) == 8;
    right &= __atomic_fetch_sub(word, 1, __ATOMIC_SEQ_CST) == 10;
    right &= __sync_val_compare_and_swap(word, 9, 0xf0) == 9;
    right &= __atomic_fetch_or(word, 0x0f, __ATOMIC_SEQ_CST) == 0xf0;
    right &= __atomic_fetch_and(word, 0x3c, __ATOMIC_SEQ_CST) == 0xff;
    right &= __atomic_fetch_xor(word, 0xff, __ATOMIC_SEQ_CST) == 0x3c;
    right &= __atomic_exchange_n(word, 9, __ATOMIC_SEQ_CST) == 0xc3;
    right &= __atomic_compare_exchange_n(word, &expected, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    right &= !__atomic_compare_exchange_n(word, &expected, 7, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    right &= expected == 1 && *(volatile uint32_t *)word == 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __sync_synchronize();
    *wide = 1ull << 40;
    right &= __atomic_fetch_add(wide, 1, __ATOMIC_SEQ_CST) == 1ull << 40;
    right &= __atomic_test_and_set(page + 0x530, __ATOMIC_SEQ_CST) == 0;
    return right;
}

static int otherend_changed(xenpv_end *end, int state)
{
    xenpv_ref ref, both[2];
    uint8_t *two;

    if (state != XenbusStateInitialised)
        return 0;
    if (xenpv_gather(end, 0, "ring-ref", "%" SCNu32, &ref) != 1 ||
        xenpv_map(end, &ref, 1, 0, (void **)&page))
        return -EINVAL;
    plain();
    ranges();
    xenpv_printf(end, 0, "right", "%d", atomics());
    both[0] = both[1] = ref;
    xenpv_map(end, both, 2, 0, (void **)&two);
    sink = ((struct unaligned *)(two + 4090))->wide;    /* over the end of one page */
    xenpv_unmap(end, two);
    xenpv_unmap(end, page);
    return 0;
}

const struct xenpv_driver xenpv_driver = { .name = "hooks", .otherend_changed = otherend_changed };
