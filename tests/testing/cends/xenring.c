/* A block backend's poll in the macros of Xen's own headers (libxen-dev): every request is refused. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#include <xen/xen.h>
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#include <xen/io/blkif.h>
#include <xen/io/xenbus.h>

#include "xenpv_end.h"

static blkif_back_ring_t ring;
static int port;

static void respond(uint64_t id, uint8_t operation, int16_t status)
{
    blkif_response_t *response = RING_GET_RESPONSE(&ring, ring.rsp_prod_pvt);

    response->id = id;
    response->operation = operation;
    response->status = status;
    ring.rsp_prod_pvt++;
}

static void event(xenpv_end *end, void *context)
{
    RING_IDX prod = ring.sring->req_prod;
    int more, notify;

    (void)context;
    xen_rmb();
    do {
        while (ring.req_cons != prod) {
            static blkif_request_t request;      /* all of it, also what is not looked at */

            RING_COPY_REQUEST(&ring, ring.req_cons, &request);
            ring.req_cons++;
            respond(request.id, request.operation, BLKIF_RSP_ERROR);
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&ring, notify);
        if (notify)
            xenpv_notify(end, (xenpv_port)port);
        RING_FINAL_CHECK_FOR_REQUESTS(&ring, more);
        prod = ring.sring->req_prod;
    } while (more);
}

static int otherend_changed(xenpv_end *end, int state)
{
    xenpv_ref ref;
    xenpv_port remote;
    void *page;

    if (state != XenbusStateInitialised)
        return 0;
    if (xenpv_gather(end, 0, "ring-ref", "%" SCNu32, &ref) != 1 ||
        xenpv_gather(end, 0, "event-channel", "%" SCNu32, &remote) != 1 ||
        xenpv_map(end, &ref, 1, 0, &page))
        return -EINVAL;
    BACK_RING_INIT(&ring, (blkif_sring_t *)page, XENPV_PAGE_SIZE);
    port = xenpv_bind(end, remote, event, NULL);
    return xenpv_switch_state(end, XenbusStateConnected);
}

static void removed(xenpv_end *end)
{
    xenpv_close(end, (xenpv_port)port);
    xenpv_unmap(end, ring.sring);
}

const struct xenpv_driver xenpv_driver = {
    .name = "xenring",
    .otherend_changed = otherend_changed,
    .remove = removed,
};
