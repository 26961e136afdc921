/*
 * blkif in batches: segments of private request copies, their data, their responses.
 * The policy of a request (operation, range, read-only) is Python's; a verdict is the
 * status byte that its response will carry: BLKIF_RSP_OKAY, _ERROR or _EOPNOTSUPP.
 */
#include "domain.h"

#define BLKIF_MAX_SEGMENTS 11u
#define BLK_SECTOR 512u

struct blk_layout {
    uint32_t request, id, segments, response, rsp_operation, rsp_status;
};

static const struct blk_layout blk_x86_64 = { 112, 8, 24, 16, 8, 10 };
static const struct blk_layout blk_x86_32 = { 108, 4, 20, 12, 8, 10 };

static inline const struct blk_layout *blk_layout(int is_x86_32)
{
    return is_x86_32 ? &blk_x86_32 : &blk_x86_64;
}

struct blk_segment {
    uint32_t gref;
    uint8_t first_sect, last_sect;
    uint16_t pad;
};

/* Sectors of each request; a segment that is out of its page or reversed makes an ERROR. */
static int64_t blk_check_segments(const void *requests, uint32_t n, int is_x86_32, int8_t *verdicts,
                                  uint32_t *sectors)
{
    const struct blk_layout *layout = blk_layout(is_x86_32);
    const uint8_t *request = requests;
    int64_t bad = 0;

    for (uint32_t i = 0; i < n; i++, request += layout->request) {
        uint32_t nr = request[1];
        struct blk_segment segment;

        sectors[i] = 0;
        verdicts[i] = 0;
        if (request[0] > 3)             /* READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE */
            continue;
        if (nr > BLKIF_MAX_SEGMENTS) {
            verdicts[i] = -1;
            bad++;
            continue;
        }
        for (uint32_t s = 0; s < nr; s++) {
            memcpy(&segment, request + layout->segments + s * sizeof(segment), sizeof(segment));
            if (segment.last_sect >= FRAME_SIZE / BLK_SECTOR ||
                segment.first_sect > segment.last_sect) {
                verdicts[i] = -1;
                bad++;
                break;
            }
            sectors[i] += segment.last_sect - segment.first_sect + 1u;
        }
    }
    return bad;
}

/*
 * Move the data of every request that is `operation` and not refused, between its granted
 * pages and local + local_offsets[i]. A failed piece makes its request an ERROR.
 */
static int64_t blk_copy(domain *self, domain *granter, const void *requests, uint32_t n,
                        int is_x86_32, uint32_t operation, int8_t *verdicts,
                        const uint64_t *local_offsets, void *local, uint64_t local_size)
{
    const struct blk_layout *layout = blk_layout(is_x86_32);
    struct call c = call_begin(self->m, self->domid, 0);
    const uint8_t *request = requests;
    int64_t failed = 0;

    KERNEL_ENTER(self->m);
    for (uint32_t i = 0; i < n && !c.aborted; i++, request += layout->request) {
        uint64_t at = local_offsets[i];
        struct blk_segment segment;

        if (verdicts[i] || request[0] != operation || request[1] > BLKIF_MAX_SEGMENTS)
            continue;
        for (uint32_t s = 0; s < request[1]; s++) {
            uint32_t offset, len;

            memcpy(&segment, request + layout->segments + s * sizeof(segment), sizeof(segment));
            offset = segment.first_sect * BLK_SECTOR;
            len = (segment.last_sect + 1u) * BLK_SECTOR - offset;
            if (at > local_size || len > local_size - at)
                return -EINVAL;
            if (copy_piece(&c, self, granter, operation == 0, segment.gref, offset, len,
                           (uint8_t *)local + at)) {
                verdicts[i] = -1;
                failed++;
                break;
            }
            at += len;
        }
    }
    return call_end(&c, failed);
}

/* One response for each request, in order; 1: notify. */
static int64_t blk_respond(ring *r, const void *requests, uint32_t n, int is_x86_32,
                           const int8_t *verdicts)
{
    const struct blk_layout *layout = blk_layout(is_x86_32);
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    const uint8_t *request = requests;
    uint8_t entry[112];
    int notify, error = ring_enter(r);

    if (error)
        return error;
    if (n > back_inflight(r))
        return -ENOSPC;
    if (r->entry_size != layout->request)
        return -EINVAL;
    if (!n)
        return 0;
    memset(entry, 0, sizeof(entry));
    for (uint32_t i = 0; i < n && !c.aborted; i++, request += layout->request) {
        int16_t status = verdicts[i];

        memcpy(entry, request + layout->id, 8);
        entry[layout->rsp_operation] = request[0];
        memcpy(entry + layout->rsp_status, &status, 2);
        slot_write(&c, r, r->prod_pvt + i, entry, layout->request);
    }
    if (c.aborted)
        return KERNEL_E_ABORTED;
    notify = ring_publish(&c, r, RSP_PROD, RSP_EVENT, n);
    return call_end(&c, notify);
}
