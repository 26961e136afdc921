/* What xenpv_end.h declares: each call is checked here and asked of Python. */
#include "runtime.h"

#define VALUE_MAX 4096      /* XENSTORE_PAYLOAD_MAX */
#define SIZE_MAX_CALL (1u << 24)


/* Python answers; the driver is stopped if Python raised. */
static int64_t host(struct xenpv_end *end, uint64_t pc, struct xenpv_call call, const void *in,
                    void *out)
{
    struct entry *me = current;
    int64_t result;

    if (!me)
        return -EPERM;      /* a constructor: there is nobody to ask */
    if (!end || end != me->end)
        entry_fail(FAILED_CALL, pc, end, 0, 0, "calls with %p, which is not its end", (void *)end);
    call.pc = pc;
    end->pc = pc;
    current = NULL;
    result = end->call(end->context, &call, in, out);
    current = me;
    if (result == RESULT_ABORT)
        entry_abort();
    return result;
}

/* The driver's bytes as private memory, seen if they are shared. */
static const void *given(const void *p, size_t size, void **copy, uint64_t pc)
{
    *copy = NULL;
    if (!size || !in_region(p))
        return p;
    *copy = malloc(size);
    if (!*copy)
        entry_fail(FAILED_CALL, pc, p, size, 0, "has no memory for %zu bytes", size);
    copy_seen(*copy, p, size, pc);
    return *copy;
}

static uint32_t checked_size(size_t size, uint64_t pc)
{
    if (size > SIZE_MAX_CALL)
        entry_fail(FAILED_CALL, pc, NULL, size, 0, "hands over %zu bytes, expected at most %u",
                   size, SIZE_MAX_CALL);
    return (uint32_t)size;
}

static int64_t send(struct xenpv_end *end, uint64_t pc, struct xenpv_call call, const void *p,
                    size_t size)
{
    void *copy;
    const void *in;
    int64_t result;

    call.in_size = checked_size(size, pc);
    in = given(p, size, &copy, pc);
    result = host(end, pc, call, in, NULL);
    free(copy);
    return result;
}

static int64_t receive(struct xenpv_end *end, uint64_t pc, struct xenpv_call call, void *p,
                       size_t size)
{
    void *copy = NULL;
    int64_t result;

    call.out_size = checked_size(size, pc);
    if (size && in_region(p)) {
        copy = malloc(size);
        if (!copy)
            entry_fail(FAILED_CALL, pc, p, size, 0, "has no memory for %zu bytes", size);
    }
    result = host(end, pc, call, NULL, copy ? copy : p);
    if (copy && result >= 0)
        copy_seen(p, copy, size, pc);
    free(copy);
    return result;
}

/* Paths: absolute, or of a directory. */
static size_t path_of(char *to, const char *directory, const char *path)
{
    int size;

    if (path[0] == '/' || !path[0])
        size = snprintf(to, VALUE_MAX, "%s", path[0] ? path : directory);
    else
        size = snprintf(to, VALUE_MAX, "%s/%s", directory, path);
    return size < VALUE_MAX ? (size_t)size : VALUE_MAX - 1;
}

unsigned xenpv_domid(const struct xenpv_end *end) { return end->domid; }
unsigned xenpv_otherend_id(const struct xenpv_end *end) { return end->otherend_id; }
const char *xenpv_nodename(const struct xenpv_end *end) { return end->nodename; }
const char *xenpv_otherend(const struct xenpv_end *end) { return end->otherend; }
void xenpv_set_data(struct xenpv_end *end, void *data) { end->data = data; }
void *xenpv_data(const struct xenpv_end *end) { return end->data; }

/* pages and grants */

#define MAPPED_MAX 1024     /* pages of one map */

static int64_t mapped(struct xenpv_end *end, uint64_t pc, struct xenpv_call call, const void *in,
                      unsigned count, int writable, void **pages)
{
    uint32_t frames[MAPPED_MAX];
    int64_t id;

    call.out_size = count * sizeof(*frames);
    id = host(end, pc, call, in, frames);
    if (id < 0)
        return id;
    *pages = region_map(end, id, frames, count, writable);
    if (!*pages)
        entry_fail(FAILED_CALL, pc, NULL, 0, count, "has no address space for %u pages", count);
    return id;
}

static unsigned checked_count(unsigned count, uint64_t pc)
{
    if (!count || count > MAPPED_MAX)
        entry_fail(FAILED_CALL, pc, NULL, 0, count, "asks for %u pages at once, expected 1 to %u",
                   count, MAPPED_MAX);
    return count;
}

static long checked_map(struct xenpv_end *end, const void *pages, uint64_t pc)
{
    long page = region_find(end, pages);

    if (page < 0)
        entry_fail(FAILED_CALL, pc, pages, 0, 0, "gives back %p, which is no map of it", pages);
    return page;
}

void *xenpv_alloc_pages(struct xenpv_end *end, unsigned count)
{
    void *pages = NULL;
    struct xenpv_call call = { .op = OP_ALLOC_PAGES, .args = { checked_count(count, CALLER) } };

    return mapped(end, CALLER, call, NULL, count, 1, &pages) < 0 ? NULL : pages;
}

void xenpv_free_pages(struct xenpv_end *end, void *pages)
{
    long page = checked_map(end, pages, CALLER);
    struct xenpv_call call = { .op = OP_FREE_PAGES,
                               .args = { region_id(page), region_count(page) } };

    region_unmap(page);
    host(end, CALLER, call, NULL, NULL);
}

int xenpv_grant_access(struct xenpv_end *end, const void *p, int readonly)
{
    int64_t id;
    long index = region_page_of(end, p, &id);
    struct xenpv_call call = { .op = OP_GRANT_ACCESS };

    if (index < 0)
        entry_fail(FAILED_CALL, CALLER, p, 0, 0, "grants %p, which is no page of it", p);
    call.args[0] = id;
    call.args[1] = index;
    call.args[2] = !!readonly;
    return (int)host(end, CALLER, call, NULL, NULL);
}

int xenpv_end_access(struct xenpv_end *end, xenpv_ref ref)
{
    return (int)host(end, CALLER, (struct xenpv_call){ .op = OP_END_ACCESS, .args = { ref } }, NULL,
                     NULL);
}

int xenpv_map(struct xenpv_end *end, const xenpv_ref *refs, unsigned count, int readonly,
              void **pages)
{
    struct xenpv_call call = { .op = OP_MAP, .in_size = count * sizeof(*refs),
                               .args = { checked_count(count, CALLER), !!readonly } };
    uint32_t wanted[MAPPED_MAX];
    int64_t id;

    copy_seen(wanted, refs, count * sizeof(*refs), CALLER);
    id = mapped(end, CALLER, call, wanted, count, !readonly, pages);
    return id < 0 ? (int)id : 0;
}

int xenpv_unmap(struct xenpv_end *end, void *pages)
{
    long page = checked_map(end, pages, CALLER);
    struct xenpv_call call = { .op = OP_UNMAP, .args = { region_id(page) } };

    region_unmap(page);
    return (int)host(end, CALLER, call, NULL, NULL);
}

int xenpv_copy_from(struct xenpv_end *end, xenpv_ref ref, unsigned offset, void *to,
                    unsigned size)
{
    struct xenpv_call call = { .op = OP_COPY_FROM, .args = { ref, offset, size } };

    return (int)receive(end, CALLER, call, to, size);
}

int xenpv_copy_to(struct xenpv_end *end, xenpv_ref ref, unsigned offset, const void *from,
                  unsigned size)
{
    struct xenpv_call call = { .op = OP_COPY_TO, .args = { ref, offset, size } };

    return (int)send(end, CALLER, call, from, size);
}

/* events, and what else calls back */

static int64_t word(const void *p)
{
    return (int64_t)(uintptr_t)p;
}

#define CALLS_BACK(name, op_, type)                                                             \
    int name(struct xenpv_end *end, type number, xenpv_handler handler, void *context)          \
    {                                                                                           \
        struct xenpv_call call = {                                                              \
            .op = op_, .args = { (int64_t)number, word((const void *)handler), word(context) } \
        };                                                                                      \
                                                                                                \
        return (int)host(end, CALLER, call, NULL, NULL);                                        \
    }

CALLS_BACK(xenpv_bind, OP_BIND, xenpv_port)
CALLS_BACK(xenpv_after, OP_AFTER, uint64_t)

int xenpv_alloc_unbound(struct xenpv_end *end, xenpv_handler handler, void *context)
{
    struct xenpv_call call = { .op = OP_ALLOC_UNBOUND,
                               .args = { 0, word((const void *)handler), word(context) } };

    return (int)host(end, CALLER, call, NULL, NULL);
}

#define OF_NUMBER(name, op_, type)                                                              \
    int name(struct xenpv_end *end, type number)                                                \
    {                                                                                           \
        struct xenpv_call call = { .op = op_, .args = { number } };                             \
                                                                                                \
        return (int)host(end, CALLER, call, NULL, NULL);                                        \
    }

OF_NUMBER(xenpv_notify, OP_NOTIFY, xenpv_port)
OF_NUMBER(xenpv_mask, OP_MASK, xenpv_port)
OF_NUMBER(xenpv_unmask, OP_UNMASK, xenpv_port)
OF_NUMBER(xenpv_close, OP_CLOSE, xenpv_port)
OF_NUMBER(xenpv_unwatch, OP_UNWATCH, int)
OF_NUMBER(xenpv_switch_state, OP_SWITCH_STATE, int)
OF_NUMBER(xenpv_cancel, OP_CANCEL, int)

#define OF_NOTHING(name, op_, type)                                                             \
    type name(struct xenpv_end *end)                                                            \
    {                                                                                           \
        return (type)host(end, CALLER, (struct xenpv_call){ .op = op_ }, NULL, NULL);           \
    }

OF_NOTHING(xenpv_transaction_start, OP_TX_START, int)
OF_NOTHING(xenpv_now, OP_NOW, uint64_t)
OF_NOTHING(xenpv_image_sectors, OP_IMAGE_SECTORS, uint64_t)
OF_NOTHING(xenpv_image_writable, OP_IMAGE_WRITABLE, int)
OF_NOTHING(xenpv_image_flush, OP_IMAGE_FLUSH, int)

int xenpv_transaction_end(struct xenpv_end *end, unsigned tx, int abort)
{
    struct xenpv_call call = { .op = OP_TX_END, .args = { tx, !!abort } };

    return (int)host(end, CALLER, call, NULL, NULL);
}

/* the store */

static int node_read(struct xenpv_end *end, uint64_t pc, unsigned tx, const char *directory,
                     const char *path, char *value, size_t size)
{
    struct xenpv_call call = { .op = OP_READ, .out_size = (uint32_t)size, .args = { tx } };
    char whole[VALUE_MAX];

    call.in_size = (uint32_t)path_of(whole, directory, path);
    return (int)host(end, pc, call, whole, value);
}

int xenpv_read(struct xenpv_end *end, unsigned tx, const char *path, char *value, size_t size)
{
    char found[VALUE_MAX + 1];
    int got = node_read(end, CALLER, tx, end->nodename, path, found, VALUE_MAX);

    if (got < 0)
        return got;
    if ((size_t)got >= size)
        return -E2BIG;
    found[got] = 0;
    copy_seen(value, found, (size_t)got + 1, CALLER);
    return got;
}

static int node_scan(struct xenpv_end *end, uint64_t pc, unsigned tx, const char *directory,
                     const char *path, const char *format, va_list args)
{
    char found[VALUE_MAX + 1];
    int got = node_read(end, pc, tx, directory, path, found, VALUE_MAX);

    if (got < 0)
        return got;
    found[got] = 0;
    return vsscanf(found, format, args);
}

int xenpv_scanf(struct xenpv_end *end, unsigned tx, const char *path, const char *format, ...)
{
    va_list args;
    int items;

    va_start(args, format);
    items = node_scan(end, CALLER, tx, end->nodename, path, format, args);
    va_end(args);
    return items;
}

int xenpv_gather(struct xenpv_end *end, unsigned tx, const char *key, const char *format, ...)
{
    va_list args;
    int items;

    va_start(args, format);
    items = node_scan(end, CALLER, tx, end->otherend, key, format, args);
    va_end(args);
    return items;
}

static int node_write(struct xenpv_end *end, uint64_t pc, unsigned tx, const char *path,
                      const char *value)
{
    struct xenpv_call call = { .op = OP_WRITE, .args = { tx } };
    char whole[2 * VALUE_MAX];
    size_t at = path_of(whole, end->nodename, path), size = strnlen(value, VALUE_MAX);

    memcpy(whole + at + 1, value, size);
    whole[at] = 0;
    call.in_size = (uint32_t)(at + 1 + size);
    return (int)host(end, pc, call, whole, NULL);
}

int xenpv_write(struct xenpv_end *end, unsigned tx, const char *path, const char *value)
{
    return node_write(end, CALLER, tx, path, value);
}

int xenpv_printf(struct xenpv_end *end, unsigned tx, const char *path, const char *format, ...)
{
    char value[VALUE_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(value, sizeof(value), format, args);
    va_end(args);
    return node_write(end, CALLER, tx, path, value);
}

int xenpv_rm(struct xenpv_end *end, unsigned tx, const char *path)
{
    struct xenpv_call call = { .op = OP_RM, .args = { tx } };
    char whole[VALUE_MAX];

    call.in_size = (uint32_t)path_of(whole, end->nodename, path);
    return (int)host(end, CALLER, call, whole, NULL);
}

int xenpv_watch(struct xenpv_end *end, const char *path, xenpv_watch_handler handler,
                void *context)
{
    struct xenpv_call call = { .op = OP_WATCH,
                               .args = { 0, word((const void *)handler), word(context) } };
    char whole[VALUE_MAX];

    call.in_size = (uint32_t)path_of(whole, end->nodename, path);
    return (int)host(end, CALLER, call, whole, NULL);
}

/* words */

static void say(struct xenpv_end *end, uint64_t pc, uint32_t op, const char *format, va_list args)
{
    struct xenpv_call call = { .op = op };
    char text[1024];

    vsnprintf(text, sizeof(text), format, args);
    call.in_size = (uint32_t)strlen(text);
    host(end, pc, call, text, NULL);
}

void xenpv_fatal(struct xenpv_end *end, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say(end, CALLER, OP_FATAL, format, args);
    va_end(args);
}

void xenpv_log(struct xenpv_end *end, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say(end, CALLER, OP_LOG, format, args);
    va_end(args);
}

/* the host's side of a device */

int xenpv_image_read(struct xenpv_end *end, uint64_t sector, void *to, size_t size)
{
    struct xenpv_call call = { .op = OP_IMAGE_READ, .args = { (int64_t)sector, (int64_t)size } };

    return (int)receive(end, CALLER, call, to, size);
}

int xenpv_image_write(struct xenpv_end *end, uint64_t sector, const void *from, size_t size)
{
    struct xenpv_call call = { .op = OP_IMAGE_WRITE, .args = { (int64_t)sector } };

    return (int)send(end, CALLER, call, from, size);
}

int xenpv_transmit(struct xenpv_end *end, const void *frame, size_t size)
{
    return (int)send(end, CALLER, (struct xenpv_call){ .op = OP_TRANSMIT }, frame, size);
}

int xenpv_receive(struct xenpv_end *end, const void *frame, size_t size)
{
    return (int)send(end, CALLER, (struct xenpv_call){ .op = OP_RECEIVE }, frame, size);
}

void xenpv_complete(struct xenpv_end *end, uint64_t id, int okay, const void *found, size_t size)
{
    struct xenpv_call call = { .op = OP_COMPLETE, .args = { (int64_t)id, !!okay } };

    send(end, CALLER, call, found, size);
}
