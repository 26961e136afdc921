/*
 * What gcc's -fsanitize=thread and -fsanitize-coverage=trace-pc make a driver call, in place of
 * the sanitizers' runtimes. A call comes before its access. The atomics do the operation.
 */
#include "runtime.h"

static RUNTIME uint64_t newest;
RUNTIME struct entry *current;
RUNTIME uint64_t *newest_step = &newest;

static inline void step(uint64_t pc)
{
    struct entry *me = current;

    if (!me)
        return;
    *newest_step = pc;
    if (__builtin_expect(--me->budget < 0, 0))
        entry_fail(FAILED_WORK, pc, NULL, 0, (int64_t)me->steps,
                   "does not return: %llu steps and no end", (unsigned long long)me->steps);
}

static inline void seen(const void *p, size_t size, uint32_t kind, uint64_t pc)
{
    step(pc);
    if (__builtin_expect(in_region(p), 0))
        touched(p, size, kind, pc);
}

void __tsan_init(void) {}
void __tsan_func_exit(void) {}

void __tsan_func_entry(void *pc)
{
    struct entry *me = current;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    (void)pc;
    step(CALLER);
    if (me && __builtin_expect(me->stack - here > STACK_BYTES && me->stack > here, 0))
        entry_fail(FAILED_STACK, CALLER, NULL, 0, (int64_t)(me->stack - here),
                   "has %lu KiB of stack in use: a recursion without an end",
                   (unsigned long)(me->stack - here) >> 10);
}

void __sanitizer_cov_trace_pc(void)
{
    step(CALLER);
}

#define ACCESSES(size)                                                                          \
    void __tsan_read##size(void *p) { seen(p, size, ACCESS_READ, CALLER); }                     \
    void __tsan_write##size(void *p) { seen(p, size, ACCESS_WRITE, CALLER); }                   \
    void __tsan_unaligned_read##size(void *p) { seen(p, size, ACCESS_READ, CALLER); }           \
    void __tsan_unaligned_write##size(void *p) { seen(p, size, ACCESS_WRITE, CALLER); }         \
    void __tsan_volatile_read##size(void *p) { seen(p, size, ACCESS_READ, CALLER); }            \
    void __tsan_volatile_write##size(void *p) { seen(p, size, ACCESS_WRITE, CALLER); }          \
    void __tsan_unaligned_volatile_read##size(void *p) { seen(p, size, ACCESS_READ, CALLER); }  \
    void __tsan_unaligned_volatile_write##size(void *p) { seen(p, size, ACCESS_WRITE, CALLER); } \
    void __tsan_read_write##size(void *p)                                                       \
    {                                                                                           \
        seen(p, size, ACCESS_READ, CALLER);                                                     \
        seen(p, size, ACCESS_WRITE, CALLER);                                                    \
    }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *p, unsigned long size) { seen(p, size, ACCESS_READ, CALLER); }
void __tsan_write_range(void *p, unsigned long size) { seen(p, size, ACCESS_WRITE, CALLER); }
void __tsan_vptr_update(void **p, void *value) { (void)value; seen(p, 8, ACCESS_WRITE, CALLER); }
void __tsan_vptr_read(void **p) { seen(p, 8, ACCESS_READ, CALLER); }

/* clang instruments these itself; of gcc's they are what -Wl,--wrap gives. */
#define COPIES(copy, move, set)                                                                 \
    void *copy(void *to, const void *from, size_t size)                                         \
    {                                                                                           \
        step(CALLER);                                                                           \
        copy_seen(to, from, size, CALLER);                                                      \
        return to;                                                                              \
    }                                                                                           \
    void *move(void *to, const void *from, size_t size)                                         \
    {                                                                                           \
        step(CALLER);                                                                           \
        copy_seen(to, from, size, CALLER);                                                      \
        return to;                                                                              \
    }                                                                                           \
    void *set(void *to, int byte, size_t size)                                                  \
    {                                                                                           \
        seen(to, size, ACCESS_WRITE, CALLER);                                                   \
        return memset(to, byte, size);                                                          \
    }

COPIES(__wrap_memcpy, __wrap_memmove, __wrap_memset)
COPIES(__tsan_memcpy, __tsan_memmove, __tsan_memset)

int __wrap_memcmp(const void *a, const void *b, size_t size)
{
    seen(a, size, ACCESS_READ, CALLER);
    seen(b, size, ACCESS_READ, CALLER);
    return memcmp(a, b, size);
}

/* Atomics: all in the strongest order. A load is a read, a store a write. */
#define UPDATE(bits, name, builtin)                                                             \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t *p, uint##bits##_t v,   \
                                                int order)                                      \
    {                                                                                           \
        (void)order;                                                                            \
        seen((const void *)p, bits / 8, ACCESS_ATOMIC, CALLER);                                 \
        return builtin(p, v, __ATOMIC_SEQ_CST);                                                 \
    }
#define EXCHANGE(bits, name)                                                                    \
    int __tsan_atomic##bits##_##name(volatile uint##bits##_t *p, uint##bits##_t *expected,      \
                                     uint##bits##_t v, int order, int failed)                   \
    {                                                                                           \
        (void)order;                                                                            \
        (void)failed;                                                                           \
        seen((const void *)p, bits / 8, ACCESS_ATOMIC, CALLER);                                 \
        return __atomic_compare_exchange_n(p, expected, v, 0, __ATOMIC_SEQ_CST,                 \
                                           __ATOMIC_SEQ_CST);                                   \
    }
#define ATOMICS(bits)                                                                           \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *p, int order)      \
    {                                                                                           \
        (void)order;                                                                            \
        seen((const void *)p, bits / 8, ACCESS_READ, CALLER);                                   \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                            \
    }                                                                                           \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *p, uint##bits##_t v, int order)   \
    {                                                                                           \
        (void)order;                                                                            \
        seen((const void *)p, bits / 8, ACCESS_WRITE, CALLER);                                  \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                               \
    }                                                                                           \
    UPDATE(bits, exchange, __atomic_exchange_n)                                                 \
    UPDATE(bits, fetch_add, __atomic_fetch_add)                                                 \
    UPDATE(bits, fetch_sub, __atomic_fetch_sub)                                                 \
    UPDATE(bits, fetch_and, __atomic_fetch_and)                                                 \
    UPDATE(bits, fetch_or, __atomic_fetch_or)                                                   \
    UPDATE(bits, fetch_xor, __atomic_fetch_xor)                                                 \
    UPDATE(bits, fetch_nand, __atomic_fetch_nand)                                               \
    EXCHANGE(bits, compare_exchange_strong)                                                     \
    EXCHANGE(bits, compare_exchange_weak)                                                       \
    uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(                                  \
        volatile uint##bits##_t *p, uint##bits##_t expected, uint##bits##_t v, int order,       \
        int failed)                                                                             \
    {                                                                                           \
        (void)order;                                                                            \
        (void)failed;                                                                           \
        seen((const void *)p, bits / 8, ACCESS_ATOMIC, CALLER);                                 \
        __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
        return expected;                                                                        \
    }

ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)

void __tsan_atomic_thread_fence(int order)
{
    (void)order;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void __tsan_atomic_signal_fence(int order)
{
    (void)order;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
