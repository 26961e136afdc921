/*
 * The access log: every shared access in a ring buffer, and the bytes that one actor reads
 * twice in one delivery without having written them in between (a double fetch: what was
 * checked may not be what is used). It stands in the hook's place and calls the hook after.
 *
 * Which bytes an actor has read since its delivery began is a bitmap of the frame. Bitmaps
 * live in a direct-mapped table by (actor, frame); one that is in the way is dropped, so an
 * example of many hundred frames in one delivery may miss a double fetch, never invent one.
 */
#include "domain.h"
#include "log.h"

#define SEEN_SLOTS 1024u
#define SEEN_WORDS (FRAME_SIZE / 64)
#define DOUBLE_FETCHES_MAX 256u
#define LOG_CAPACITY_MAX (1u << 24)
#define LOG_ACTORS 32768u               /* domids end at DOMID_FIRST_RESERVED */

struct access_entry {
    uint32_t delivery;
    uint32_t frame;
    uint16_t offset, size;
    uint16_t actor, kind;
};

struct double_fetch {
    uint64_t delivery;
    uint32_t frame;
    uint32_t offset, size;
    uint16_t actor;
    uint16_t kind;
    uint64_t count;
};

/* All zero is what frame 0 has before its first access: no entry needs an initial value. */
struct seen {
    uint64_t delivery;
    uint32_t frame;
    uint32_t actor;
    uint64_t bits[SEEN_WORDS];
};

struct access_log {
    access_hook next;
    void *next_context;
    uint64_t total;
    uint64_t deliveries;                /* of all actors; numbers start at 1 */
    uint32_t mask;
    uint32_t nr_double;
    struct access_entry *entries;
    struct seen *seen;
    uint64_t *current;                  /* by actor: the delivery that it is in */
    struct double_fetch doubles[DOUBLE_FETCHES_MAX];
};

/* Bits [first, first + n) of one word. */
static inline uint64_t word_mask(uint32_t first, uint32_t n)
{
    return (n == 64 ? ~0ull : (1ull << n) - 1) << first;
}

static void log_double(struct access_log *log, uint32_t actor, uint32_t kind, uint32_t frame,
                       uint32_t first, uint32_t end)
{
    struct double_fetch *at;

    for (uint32_t i = 0; i < log->nr_double; i++) {
        at = &log->doubles[i];
        if (at->actor == actor && at->frame == frame && at->offset == first &&
            at->size == end - first) {
            at->count++;
            return;
        }
    }
    if (log->nr_double == DOUBLE_FETCHES_MAX)
        return;
    at = &log->doubles[log->nr_double++];
    at->delivery = log->current[actor];
    at->frame = frame;
    at->offset = first;
    at->size = end - first;
    at->actor = (uint16_t)actor;
    at->kind = (uint16_t)kind;
    at->count = 1;
}

/* NULL: a write of a frame of which nothing was read has nothing to clear. */
static inline struct seen *log_seen(struct access_log *log, uint32_t actor, uint32_t kind,
                                    uint32_t frame)
{
    /* Xen's reads for a grant copy are a reader's of their own: a frontend may name its ring as
     * the place of a request's data. */
    uint32_t reader = actor | (kind & ACCESS_COPY) << 16;
    struct seen *seen = &log->seen[(frame ^ reader * 0x9e5u) & (SEEN_SLOTS - 1)];

    if (seen->frame != frame || seen->actor != reader || seen->delivery != log->current[actor]) {
        if ((kind & 3) != ACCESS_READ)
            return NULL;
        memset(seen->bits, 0, sizeof(seen->bits));
        seen->frame = frame;
        seen->actor = reader;
        seen->delivery = log->current[actor];
    }
    return seen;
}

/* A read marks its bytes and tells of those that were marked; an own write clears them. */
static void log_mark(struct access_log *log, uint32_t actor, uint32_t kind, uint32_t frame,
                     uint32_t offset, uint32_t size)
{
    struct seen *seen = log_seen(log, actor, kind, frame);
    uint32_t at = offset, end = offset + size, first = FRAME_NONE, last = 0;

    if (!seen)
        return;
    while (at < end) {
        uint32_t bit = at % 64, n = 64 - bit < end - at ? 64 - bit : end - at;
        uint64_t mask = word_mask(bit, n), *word = &seen->bits[at / 64];

        if ((kind & 3) == ACCESS_READ) {
            uint64_t twice = *word & mask;

            if (__builtin_expect(twice != 0, 0)) {
                if (first == FRAME_NONE)
                    first = at / 64 * 64 + (uint32_t)__builtin_ctzll(twice);
                last = at / 64 * 64 + 64 - (uint32_t)__builtin_clzll(twice);
            }
            *word |= mask;
        } else {
            *word &= ~mask;
        }
        at += n;
    }
    if (__builtin_expect(first != FRAME_NONE, 0))
        log_double(log, actor, kind, frame, first, last);
}

static int log_hook(void *context, uint32_t actor, uint32_t kind, uint32_t frame, uint32_t offset,
                    uint32_t size)
{
    struct access_log *log = context;
    struct access_entry *entry = &log->entries[log->total++ & log->mask];

    actor &= LOG_ACTORS - 1;
    entry->delivery = (uint32_t)log->current[actor];
    entry->frame = frame;
    entry->offset = (uint16_t)offset;
    entry->size = (uint16_t)(size > 0xffff ? 0xffff : size);
    entry->actor = (uint16_t)actor;
    entry->kind = (uint16_t)kind;
    if ((kind & 3) != ACCESS_ATOMIC && offset < FRAME_SIZE && size <= FRAME_SIZE - offset)
        log_mark(log, actor, kind, frame, offset, size);
    return log->next ? log->next(log->next_context, actor, kind, frame, offset, size) : 0;
}

static void log_chain(struct access_log *log, access_hook hook, void *context)
{
    log->next = hook;
    log->next_context = context;
}

static void log_free(struct access_log *log)
{
    free(log->entries);
    free(log->seen);
    free(log->current);
    free(log);
}

/* Log from now on, the last `capacity` (a power of two) accesses; EEXIST if it is on. */
static int machine_log(machine *m, uint32_t capacity)
{
    struct access_log *log;

    KERNEL_ENTER(m);
    if (m->log)
        return -EEXIST;
    if (!capacity || capacity > LOG_CAPACITY_MAX || (capacity & (capacity - 1)))
        return -EINVAL;
    log = calloc(1, sizeof(*log));
    if (!log)
        return -ENOMEM;
    /* Large callocs are fresh zero mappings: they cost what is touched. */
    log->entries = calloc(capacity, sizeof(*log->entries));
    log->seen = calloc(SEEN_SLOTS, sizeof(*log->seen));
    log->current = calloc(LOG_ACTORS, sizeof(*log->current));
    if (!log->entries || !log->seen || !log->current) {
        log_free(log);
        return -ENOMEM;
    }
    log->mask = capacity - 1;
    log_chain(log, m->hook, m->hook_context);
    m->log = log;
    m->hook = log_hook;
    m->hook_context = log;
    return 0;
}

/* Off, and forgotten; nothing if it is off. */
static int machine_unlog(machine *m)
{
    struct access_log *log = m->log;

    if (!log)
        return 0;
    m->log = NULL;
    m->hook = log->next;
    m->hook_context = log->next_context;
    log_free(log);
    return 0;
}

/* What `actor` does from now on is another delivery: what it read before may be read again. */
static int log_delivery(machine *m, uint32_t actor)
{
    if (m->log)
        m->log->current[actor & (LOG_ACTORS - 1)] = ++m->log->deliveries;
    return 0;
}

/* Accesses since the log is on, also those that were overwritten since. */
static uint64_t log_total(machine *m)
{
    return m->log ? m->log->total : 0;
}

/* The newest `max` entries that are kept, oldest first; how many. */
static uint32_t log_entries(machine *m, struct access_entry *out, uint32_t max)
{
    struct access_log *log = m->log;
    uint64_t n;

    if (!log)
        return 0;
    n = log->total <= log->mask ? log->total : (uint64_t)log->mask + 1;
    if (n > max)
        n = max;
    for (uint64_t i = 0; i < n; i++)
        out[i] = log->entries[(log->total - n + i) & log->mask];
    return (uint32_t)n;
}

static uint32_t log_double_fetches(machine *m, struct double_fetch *out, uint32_t max)
{
    struct access_log *log = m->log;
    uint32_t n;

    if (!log)
        return 0;
    n = log->nr_double < max ? log->nr_double : max;
    memcpy(out, log->doubles, n * sizeof(*out));
    return n;
}
