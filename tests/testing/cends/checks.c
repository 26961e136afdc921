/* A backend that checks an index where the frontend can still change it, and then uses it. */
#include <errno.h>
#include <inttypes.h>

#include "xenpv_end.h"
#include "xenpv_io.h"

static struct blkif_sring *sring;
static int port;
static volatile uint8_t sink;

static uint8_t byte_of(const uint8_t *page, const volatile uint64_t *sector)
{
    if (*sector >= XENPV_PAGE_SIZE)
        return 0;
    return page[*sector];                   /* used */
}

static void event(xenpv_end *end, void *context)
{
    (void)end;
    (void)context;
    if (sring->req_prod)
        sink = byte_of((uint8_t *)sring, &sring->ring[0].req.sector_number);
}

static int otherend_changed(xenpv_end *end, int state)
{
    xenpv_ref ref;
    xenpv_port remote;

    if (state != XenbusStateInitialised)
        return 0;
    if (xenpv_gather(end, 0, "ring-ref", "%" SCNu32, &ref) != 1 ||
        xenpv_gather(end, 0, "event-channel", "%" SCNu32, &remote) != 1 ||
        xenpv_map(end, &ref, 1, 0, (void **)&sring))
        return -EINVAL;
    port = xenpv_bind(end, remote, event, 0);
    return xenpv_switch_state(end, XenbusStateConnected);
}

static void removed(xenpv_end *end)
{
    xenpv_close(end, (xenpv_port)port);
    xenpv_unmap(end, sring);
}

const struct xenpv_driver xenpv_driver = {
    .name = "checks",
    .otherend_changed = otherend_changed,
    .remove = removed,
};
