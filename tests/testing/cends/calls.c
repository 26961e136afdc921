/* A block backend that makes every call of xenpv_end.h, and writes what each gave into `said/`. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

static int port, fired, heard;
static char path_heard[256];

static void say(xenpv_end *end, const char *what, long long value)
{
    char path[64] = "said/";

    strncat(path, what, 50);
    for (char *at = path; *at; at++)
        if (*at == ' ')
            *at = '-';
    xenpv_printf(end, 0, path, "%lld", value);
}

static void event(xenpv_end *end, void *context)
{
    ++*(int *)context;
    say(end, "events", fired);
}

static void changed(xenpv_end *end, void *context, const char *path)
{
    (void)end;
    heard += *(int *)context;
    strncpy(path_heard, path, sizeof(path_heard) - 1);
}

static void identity(xenpv_end *end)
{
    say(end, "domid", xenpv_domid(end));
    say(end, "otherend_id", xenpv_otherend_id(end));
    xenpv_write(end, 0, "said/otherend", xenpv_otherend(end));
    xenpv_printf(end, 0, "said/nodename", "%s", xenpv_nodename(end));
}

static void grants(xenpv_end *end)
{
    xenpv_ref refs[2], bad = 4000;
    uint8_t *pages, *own = xenpv_alloc_pages(end, 3), private[5000];
    void *none = NULL;
    int ref, again;

    xenpv_gather(end, 0, "pages", "%" SCNu32 " %" SCNu32, &refs[0], &refs[1]);
    say(end, "map", xenpv_map(end, refs, 2, 0, (void **)&pages));
    say(end, "adjacent", pages[4095] * 256 + pages[4096]);
    memcpy(pages + 4094, "wxyz", 4);
    say(end, "unmap", xenpv_unmap(end, pages));
    say(end, "map nothing", xenpv_map(end, &bad, 1, 0, &none));
    say(end, "still nothing", none != NULL);
    refs[1] = bad;
    say(end, "map all or none", xenpv_map(end, refs, 2, 0, &none));
    say(end, "copy from", xenpv_copy_from(end, refs[0], 4094, private, 2));
    say(end, "copied", private[0] * 256 + private[1]);
    say(end, "copy past", xenpv_copy_from(end, refs[0], 4090, private, 10));
    say(end, "copy of nothing", xenpv_copy_from(end, bad, 0, private, 10));
    say(end, "copy to", xenpv_copy_to(end, refs[0], 8, "to", 2));
    memset(own, 'o', 3 * XENPV_PAGE_SIZE);
    say(end, "copy to from own", xenpv_copy_to(end, refs[0], 16, own + 4094, 4));
    ref = xenpv_grant_access(end, own + XENPV_PAGE_SIZE, 1);
    again = xenpv_grant_access(end, own + XENPV_PAGE_SIZE, 0);
    say(end, "two references", ref > 0 && again > 0 && ref != again);
    say(end, "end access", xenpv_end_access(end, (xenpv_ref)ref));
    say(end, "end again", xenpv_end_access(end, (xenpv_ref)again));
    xenpv_free_pages(end, own);
}

static void store(xenpv_end *end)
{
    char value[8];
    int tx, a = 0, b = 0;

    say(end, "read nothing", xenpv_read(end, 0, "nothing", value, sizeof(value)));
    xenpv_write(end, 0, "pair", "12 34");
    say(end, "read", xenpv_read(end, 0, "pair", value, sizeof(value)));
    say(end, "read small", xenpv_read(end, 0, "pair", value, 5));
    say(end, "scanf", xenpv_scanf(end, 0, "pair", "%d %d", &a, &b));
    say(end, "sum", a + b);
    say(end, "scanf nothing", xenpv_scanf(end, 0, "nothing", "%d", &a));
    say(end, "gather", xenpv_gather(end, 0, "state", "%d", &a));
    say(end, "write elsewhere", xenpv_write(end, 0, "/nowhere//x", "1"));

    tx = xenpv_transaction_start(end);
    xenpv_write(end, (unsigned)tx, "aborted", "1");
    say(end, "abort", xenpv_transaction_end(end, (unsigned)tx, 1));
    say(end, "aborted", xenpv_read(end, 0, "aborted", value, sizeof(value)));
    tx = xenpv_transaction_start(end);
    xenpv_write(end, (unsigned)tx, "kept", "1");
    say(end, "outside", xenpv_read(end, 0, "kept", value, sizeof(value)));
    say(end, "commit", xenpv_transaction_end(end, (unsigned)tx, 0));
    say(end, "kept", xenpv_read(end, 0, "kept", value, sizeof(value)));
    tx = xenpv_transaction_start(end);
    xenpv_read(end, (unsigned)tx, "pair", value, sizeof(value));
    xenpv_write(end, (unsigned)tx, "late", "1");
    xenpv_write(end, 0, "pair", "5 6");
    say(end, "conflict", xenpv_transaction_end(end, (unsigned)tx, 0));
    say(end, "rm", xenpv_rm(end, 0, "pair"));
    say(end, "gone", xenpv_read(end, 0, "pair", value, sizeof(value)));
}

static void image(xenpv_end *end)
{
    uint8_t sector[512] = "sector", other[512];

    say(end, "sectors", (long long)xenpv_image_sectors(end));
    say(end, "writable", xenpv_image_writable(end));
    say(end, "image write", xenpv_image_write(end, 3, sector, sizeof(sector)));
    say(end, "image read", xenpv_image_read(end, 3, other, sizeof(other)));
    say(end, "same", memcmp(sector, other, sizeof(other)));
    say(end, "image past", xenpv_image_read(end, 128, other, sizeof(other)));
    say(end, "image far", xenpv_image_read(end, UINT64_MAX, other, sizeof(other)));
    say(end, "flush", xenpv_image_flush(end));
}

static int watch_pair, nr_timers, late;
static const int one = 1;

static void timer(xenpv_end *end, void *context)
{
    uint64_t *since = context;

    nr_timers++;
    say(end, "after", (long long)(xenpv_now(end) - *since));
    xenpv_cancel(end, late);
    say(end, "heard", heard);
    say(end, "path heard", strcmp(path_heard + strlen(path_heard) - 7, "watched"));
    say(end, "unwatch", xenpv_unwatch(end, watch_pair));
    say(end, "masked", fired);
    xenpv_log(end, "%s says %d", "calls.c", 7);
    xenpv_unmask(end, (xenpv_port)port);
}

static int connect(xenpv_end *end)
{
    static uint64_t since;
    xenpv_port remote;

    identity(end);
    grants(end);
    store(end);
    image(end);
    xenpv_gather(end, 0, "event-channel", "%" SCNu32, &remote);
    say(end, "bind nothing", xenpv_bind(end, 1000, event, &fired));
    port = xenpv_bind(end, remote, event, &fired);
    xenpv_mask(end, (xenpv_port)port);
    say(end, "notify", xenpv_notify(end, (xenpv_port)port));
    say(end, "unbound", xenpv_alloc_unbound(end, event, &fired) > 0);
    watch_pair = xenpv_watch(end, "watched", changed, (void *)&one);
    xenpv_write(end, 0, "watched", "1");
    since = xenpv_now(end);
    xenpv_after(end, 5000000, timer, &since);
    late = xenpv_after(end, 6000000, timer, &since);
    return xenpv_switch_state(end, XenbusStateConnected);
}

static int probe(xenpv_end *end)
{
    xenpv_set_data(end, &port);
    return 0;
}

static int otherend_changed(xenpv_end *end, int state)
{
    if (state == XenbusStateInitialised)
        return xenpv_data(end) == &port ? connect(end) : -EINVAL;
    return 0;
}

/* The port of alloc_unbound is left, so that its end is told. */
static void removed(xenpv_end *end)
{
    xenpv_close(end, (xenpv_port)port);
}

const struct xenpv_driver xenpv_driver = {
    .name = "calls",
    .probe = probe,
    .otherend_changed = otherend_changed,
    .remove = removed,
};
