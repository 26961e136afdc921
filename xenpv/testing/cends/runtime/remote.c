/*
 * A driver in a process of its own: what it asks for and what it touches goes to Python through
 * a socket, each message answered before the driver goes on.
 *
 *     driver SOCKET MEMORY STATUS      descriptors: of the arena, of a page for the newest step
 */
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime.h"

static RUNTIME int peer;
static RUNTIME int watched;

static void put(const void *p, size_t size)
{
    const char *from = p;

    while (size) {
        ssize_t done = write(peer, from, size);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(71);
        from += done;
        size -= (size_t)done;
    }
}

static void get(void *p, size_t size)
{
    char *to = p;

    while (size) {
        ssize_t done = read(peer, to, size);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(0);           /* Python needs it no longer */
        to += done;
        size -= (size_t)done;
    }
}

static void say(uint32_t kind, const void *body, size_t size, const void *more, size_t more_size)
{
    struct xenpv_header header = { kind, (uint32_t)(size + more_size) };

    put(&header, sizeof(header));
    put(body, size);
    put(more, more_size);
}

/* Its size; what it has beyond `size` is put into `more`. */
static int64_t answer(void *more, size_t size)
{
    struct xenpv_header header;
    int64_t result;

    get(&header, sizeof(header));
    if (header.kind != M_ANSWER || header.size < sizeof(result) ||
        header.size - sizeof(result) > size)
        _exit(72);
    get(&result, sizeof(result));
    get(more, header.size - sizeof(result));
    return result;
}

static int64_t remote_call(void *context, const struct xenpv_call *call, const void *in, void *out)
{
    (void)context;
    say(M_CALL, call, sizeof(*call), in, call->in_size);
    return answer(out, call->out_size);
}

static int remote_access(void *machine, uint32_t actor, uint32_t kind, uint32_t frame,
                         uint32_t offset, uint32_t size)
{
    struct xenpv_end *end = machine;
    struct xenpv_access access = { kind, frame, offset, size, end->pc };

    (void)actor;
    if (!watched)
        return 0;
    say(M_ACCESS, &access, sizeof(access), NULL, 0);
    return answer(NULL, 0) != 0;
}

static void enter(struct xenpv_end *end, uint32_t size)
{
    struct xenpv_enter enter;
    struct xenpv_done done = { 0 };
    char *given;

    get(&enter, sizeof(enter));
    given = malloc(size - sizeof(enter) + 1);
    if (!given)
        _exit(73);
    get(given, size - sizeof(enter));
    given[size - sizeof(enter)] = 0;
    watched = enter.watched != 0;
    done.ending = xenpv_enter(end, &enter, given, &done.result);
    free(given);
    done.failure = *xenpv_end_failure(end);
    done.blocks = xenpv_end_blocks(end, &done.block_size, &done.block_pc);
    say(M_DONE, &done, sizeof(done), NULL, 0);
}

int main(int argc, char **argv)
{
    struct rlimit none = { 0, 0 };
    struct xenpv_header header;
    struct xenpv_new with;
    struct xenpv_end *end;
    uint64_t base;

    if (argc != 4)
        return 64;
    setrlimit(RLIMIT_CORE, &none);
    peer = atoi(argv[1]);
    newest_step = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
    if (newest_step == MAP_FAILED)
        return 71;
    base = xenpv_open();
    get(&header, sizeof(header));
    get(&with, sizeof(with));
    end = xenpv_end_new(remote_call, remote_access, NULL, NULL, atoi(argv[2]), with.domid,
                        with.otherend_id, with.nodename, with.otherend);
    if (!end)
        return 71;
    end->machine = end;
    say(M_READY, &base, sizeof(base), NULL, 0);
    for (;;) {
        get(&header, sizeof(header));
        if (header.kind != M_ENTER || header.size < sizeof(struct xenpv_enter))
            return 72;
        enter(end, header.size);
    }
}
