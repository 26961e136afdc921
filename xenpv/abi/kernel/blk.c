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
    uint32_t request, id, sector, segments, response, rsp_operation, rsp_status;
};

static const struct blk_layout blk_x86_64 = { 112, 8, 16, 24, 16, 8, 10 };
static const struct blk_layout blk_x86_32 = { 108, 4, 12, 20, 12, 8, 10 };

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
    uint32_t is_x86_32;
};

static inline const struct blk_layout *blk_layout(const struct blk_pass *p)
{
    return p->is_x86_32 ? &blk_x86_32 : &blk_x86_64;
}

/* Sectors of one request, added up into its run; -1 for a list of segments that cannot be. */
static inline int8_t blk_segments(const struct blk_layout *layout, const uint8_t *request,
                                  uint32_t *sectors, uint32_t *units)
{
    uint32_t nr = request[1];
    struct blk_segment segment;

    *sectors = 0;
    if (nr > BLKIF_MAX_SEGMENTS)
        return -1;
    for (uint32_t s = 0; s < nr; s++) {
        uint32_t length;

        memcpy(&segment, request + layout->segments + s * sizeof(segment), sizeof(segment));
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
            verdict = blk_segments(layout, request, &sectors, &units);
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

    return n <= 0 ? n : n | (int64_t)blk_columns(p, (uint32_t)n) << 16;
}

/* Segments whose pages are pinned together: a page takes 128 pins, and `seen` a byte. */
#define BLK_PINS (11 * BLKIF_MAX_SEGMENTS)

#define BLK_SEEN 64u            /* a power of two */

struct blk_pin {
    uint32_t gref, frame, offset, len;
    uint64_t place;
    uint16_t start, length;     /* bytes of the page that are granted: a sub-page's, or all */
    int owns;                   /* 0: an earlier one holds the page */
};

struct blk_pins {
    uint32_t nr;
    uint8_t seen[BLK_SEEN];     /* by low bits of the reference: 1 + the pin that holds it */
    struct blk_pin pin[BLK_PINS];
};

/* Back to the first nr of them. */
static void blk_unpin(struct call *c, const struct blk_pass *p, struct blk_pins *pins, uint32_t nr,
                      int readonly)
{
    while (pins->nr > nr) {
        struct blk_pin *pin = &pins->pin[--pins->nr];
        uint8_t *seen = &pins->seen[pin->gref % BLK_SEEN];

        if (!pin->owns)
            continue;
        if (*seen == pins->nr + 1)
            *seen = 0;
        c->flags = ACCESS_HYPERVISOR;
        copy_unpin(c, p->granter, pin->gref, readonly);
        c->flags = 0;
    }
}

/*
 * A page named twice is pinned once, as a backend that maps keeps what it has mapped. A GNTST;
 * GNTST_general_error where the segment lies outside of what is granted of the page.
 */
static int blk_pin_page(struct call *c, const struct blk_pass *p, struct blk_pins *pins,
                        struct blk_pin *pin, int readonly)
{
    uint8_t *seen = &pins->seen[pin->gref % BLK_SEEN];

    pin->owns = !*seen || pins->pin[*seen - 1].gref != pin->gref;
    if (pin->owns) {
        struct active_entry *active;
        int status;

        c->flags = ACCESS_HYPERVISOR;
        status = copy_pin(c, p->granter, p->ring->d->domid, pin->gref, readonly, 1, &active);
        c->flags = 0;
        if (status)
            return status;
        pin->frame = active->frame;
        pin->start = active->start;
        pin->length = active->length;
        *seen = (uint8_t)(pins->nr + 1);
    } else {
        const struct blk_pin *first = &pins->pin[*seen - 1];

        pin->frame = first->frame;
        pin->start = first->start;
        pin->length = first->length;
    }
    pins->nr++;                 /* from here on blk_unpin gives it back */
    if (pin->offset < pin->start || pin->offset + pin->len > (uint32_t)pin->start + pin->length)
        return GNTST_general_error;
    return GNTST_okay;
}

/*
 * Pin the pages of one request, all or none, and say what goes where. -1: one cannot be
 * pinned. -EINVAL: not what blk_take let pass (the bytes are Python's too, so nothing here
 * trusts them), or beyond `local`.
 */
static int blk_pin(struct call *c, const struct blk_pass *p, const uint8_t *request,
                   uint64_t place, uint64_t local_size, struct blk_pins *pins)
{
    const struct blk_layout *layout = blk_layout(p);
    int readonly = request[0] != BLKIF_OP_READ, error = 0;
    uint32_t before = pins->nr, nr = request[1];

    if (nr > BLKIF_MAX_SEGMENTS)
        return -EINVAL;
    for (uint32_t s = 0; s < nr && !error; s++) {
        struct blk_pin *pin = &pins->pin[pins->nr];
        struct blk_segment segment;

        memcpy(&segment, request + layout->segments + s * sizeof(segment), sizeof(segment));
        pin->gref = segment.gref;
        pin->offset = segment.first_sect * BLK_SECTOR;
        pin->len = (segment.last_sect + 1u) * BLK_SECTOR - pin->offset;
        pin->place = place;
        if (segment.last_sect >= FRAME_SIZE / BLK_SECTOR || segment.first_sect > segment.last_sect ||
            place > local_size || pin->len > local_size - place)
            error = -EINVAL;
        else if (blk_pin_page(c, p, pins, pin, readonly))
            error = -1;
        place += pin->len;
    }
    if (error)
        blk_unpin(c, p, pins, before, readonly);
    return error;
}

static void blk_move(struct call *c, const struct blk_pass *p, const struct blk_pin *pin,
                     int to_guest, uint8_t *local)
{
    uint8_t *page = frame_address(p->ring->d->m, pin->frame) + pin->offset;

    if (to_guest)
        shared_copy_in(c, page, local + pin->place, pin->len);
    else
        shared_copy_out(c, local + pin->place, page, pin->len);
}

/*
 * Move the data of the requests in [first, end), of one operation, that are not refused,
 * between their granted pages and local + places[i]. Pages are pinned before the first byte
 * moves: of a request of which one reference fails, nothing is copied and it becomes an
 * ERROR. How many did.
 */
static int64_t blk_copy(struct blk_pass *p, uint32_t first, uint32_t end, const uint64_t *places,
                        void *local, uint64_t local_size)
{
    const struct blk_layout *layout = blk_layout(p);
    domain *self = p->ring->d;
    struct call c = call_begin(self->m, self->domid, 0);
    const uint8_t *request = (const uint8_t *)p->requests + (size_t)first * layout->request;
    int to_guest = request[0] == BLKIF_OP_READ;
    struct blk_pins pins;
    int64_t failed = 0;
    int error = 0;

    KERNEL_ENTER(self->m);
    if (first > end || end > p->ring->size)
        return -EINVAL;
    pins.nr = 0;
    memset(pins.seen, 0, sizeof(pins.seen));
    while (first < end && !c.aborted && !error) {
        for (; first < end && pins.nr <= BLK_PINS - BLKIF_MAX_SEGMENTS && !error;
             first++, request += layout->request) {
            if (p->verdicts[first])
                continue;
            error = to_guest == (request[0] == BLKIF_OP_READ)
                ? blk_pin(&c, p, request, places[first], local_size, &pins) : -EINVAL;
            if (error == -1) {
                p->verdicts[first] = -1;
                failed++;
                error = 0;
            }
        }
        for (uint32_t i = 0; i < pins.nr && !error; i++)
            blk_move(&c, p, &pins.pin[i], to_guest, local);
        blk_unpin(&c, p, &pins, 0, !to_guest);
    }
    return error ? error : call_end(&c, failed);
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
