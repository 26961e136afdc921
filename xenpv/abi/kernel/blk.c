/*
 * blkif in batches: requests and what they ask for in columns, their data, their responses.
 * The policy of a request (operation, range, read-only) is Python's; a verdict is the
 * status byte that its response will carry: BLKIF_RSP_OKAY, _ERROR or _EOPNOTSUPP.
 */
#include "domain.h"

#define BLKIF_MAX_SEGMENTS 11u
#define BLK_SECTOR 512u
#define BLK_SECTOR_SHIFT 9

struct blk_layout {
    uint32_t request, id, sector, segments, indirect_grefs, response, rsp_operation, rsp_status;
};

static const struct blk_layout blk_x86_64 = { 112, 8, 16, 24, 28, 16, 8, 10 };
static const struct blk_layout blk_x86_32 = { 108, 4, 12, 20, 24, 12, 8, 10 };

struct blk_segment {
    uint32_t gref;
    uint8_t first_sect, last_sect;
    uint16_t pad;
};

/*
 * Neighbours of one operation: what a verdict on all of them at once has to know. Those that
 * were refused for their segment list are in it too.
 */
struct blk_run {
    uint32_t first, end;        /* requests [first, end) */
    uint32_t operation;
    uint32_t least;             /* sectors of the shortest of them */
    uint32_t units;             /* OR of sector_number and of each segment's sectors */
    uint32_t pad;
    uint64_t top;               /* where the last sector of them ends; UINT64_MAX: beyond u64 */
};

/* One ring's passes, bound once. The arrays are private, each of a ring's size. */
struct blk_pass {
    ring *ring;
    domain *granter;
    void *requests;
    int8_t *verdicts;
    uint32_t *sectors;          /* that each request asks for */
    uint64_t *offsets;          /* sector_number in bytes */
    struct blk_run *runs;
    void *table;                /* segments of one indirect request */
    uint32_t table_size;        /* how many it has room for: what was advertised */
    uint32_t nr_table;
    uint32_t listed;            /* 1 + the request whose segments are in it; 0: none */
    uint32_t is_x86_32;
};

static inline const struct blk_layout *blk_layout(const struct blk_pass *p)
{
    return p->is_x86_32 ? &blk_x86_32 : &blk_x86_64;
}

/*
 * Sectors of one request, and their number in each segment or'ed into `units`; -1 for a list
 * of segments that cannot be.
 */
static inline int8_t blk_segments(const uint8_t *list, uint32_t nr, uint32_t *sectors,
                                  uint32_t *units)
{
    struct blk_segment segment;

    *sectors = 0;
    for (uint32_t s = 0; s < nr; s++, list += sizeof(segment)) {
        uint32_t length;

        memcpy(&segment, list, sizeof(segment));
        if (segment.last_sect >= FRAME_SIZE / BLK_SECTOR || segment.first_sect > segment.last_sect)
            return -1;
        length = segment.last_sect - segment.first_sect + 1u;
        *sectors += length;
        *units |= length;
    }
    return 0;
}

/* Columns of n requests in private memory, and their runs; how many runs. */
static uint32_t blk_columns(const struct blk_pass *p, uint32_t n)
{
    const struct blk_layout *layout = blk_layout(p);
    const uint8_t *request = p->requests;
    struct blk_run *run = NULL;
    uint32_t nr = 0;

    for (uint32_t i = 0; i < n; i++, request += layout->request) {
        uint32_t sectors = 0, units = 0;
        uint64_t sector, top;
        int8_t verdict = 0;

        memcpy(&sector, request + layout->sector, sizeof(sector));
        if (request[0] <= BLKIF_OP_FLUSH_DISKCACHE)
            verdict = request[1] > BLKIF_MAX_SEGMENTS ? -1
                : blk_segments(request + layout->segments, request[1], &sectors, &units);
        if (!run || request[0] != run->operation) {
            run = &p->runs[nr++];
            *run = (struct blk_run){ .first = i, .operation = request[0], .least = UINT32_MAX };
        }
        p->verdicts[i] = verdict;
        p->sectors[i] = sectors;
        p->offsets[i] = sector << BLK_SECTOR_SHIFT;
        run->end = i + 1;
        if (sectors < run->least)
            run->least = sectors;
        if (!sectors)
            continue;
        top = sector + sectors < sector ? UINT64_MAX : sector + sectors;
        if (top > run->top)
            run->top = top;
        run->units |= units | (uint32_t)sector;
    }
    return nr;
}

/*
 * All requests that are there, copied once, with their columns: their number and, from bit
 * 16 on, that of their runs.
 */
static int64_t blk_take(struct blk_pass *p)
{
    int64_t n = back_take(p->ring, p->requests, p->ring->size, blk_layout(p)->request);

    p->listed = 0;
    return n <= 0 ? n : n | (int64_t)blk_columns(p, (uint32_t)n) << 16;
}

/* One response for each of n requests, in order; 1: notify the frontend. */
static int64_t blk_answer(struct blk_pass *p, uint32_t n)
{
    const struct blk_layout *layout = blk_layout(p);
    ring *r = p->ring;
    struct call c = call_begin(r->d->m, r->d->domid, 0);
    const uint8_t *request = p->requests;
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
        int16_t status = p->verdicts[i];

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
