/*
 * The data of block requests: their pages, pinned together, and what moves between those and
 * private memory or a file. Pages are pinned before the first byte moves: of a request of which
 * one reference fails, nothing is moved and it becomes an ERROR.
 */
#include "domain.h"

#include <sys/stat.h>
#include <sys/uio.h>

/* As many as one indirect request has: a page takes 128 pins, see blk_pins. */
#define BLK_PINS 256u
#define BLK_SEEN 128u           /* a power of two */

struct blk_pin {
    uint32_t gref, frame, offset, len;
    uint64_t place;             /* in private memory */
    uint32_t request;
    uint16_t start, length;     /* bytes of the page that are granted: a sub-page's, or all */
    int owns;                   /* 0: an earlier one holds the page */
};

/*
 * A page named twice is pinned once, as a backend that maps keeps what it has mapped; twice
 * where another took its place in `seen` meanwhile, so at most BLK_PINS / 2 times.
 */
struct blk_pins {
    uint32_t nr;
    uint16_t seen[BLK_SEEN];    /* by low bits of the reference: 1 + the pin that holds it */
    struct blk_pin pin[BLK_PINS];
};

static inline void blk_pins_clear(struct blk_pins *pins)
{
    pins->nr = 0;
    memset(pins->seen, 0, sizeof(pins->seen));
}

/* Back to the first nr of them. */
static void blk_unpin(struct call *c, const struct blk_pass *p, struct blk_pins *pins, uint32_t nr,
                      int readonly)
{
    while (pins->nr > nr) {
        struct blk_pin *pin = &pins->pin[--pins->nr];
        uint16_t *seen = &pins->seen[pin->gref % BLK_SEEN];

        if (!pin->owns)
            continue;
        if (*seen == pins->nr + 1)
            *seen = 0;
        c->flags = ACCESS_HYPERVISOR;
        copy_unpin(c, p->granter, pin->gref, readonly);
        c->flags = 0;
    }
}

/* A GNTST; GNTST_general_error where the segment lies outside of what is granted of the page. */
static inline int blk_pin_page(struct call *c, const struct blk_pass *p, struct blk_pins *pins,
                               struct blk_pin *pin, int readonly)
{
    uint16_t *seen = &pins->seen[pin->gref % BLK_SEEN];

    pin->owns = !*seen || pins->pin[*seen - 1].gref != pin->gref;
    if (pin->owns) {
        struct active_entry *active;
        int status;

        c->flags = ACCESS_HYPERVISOR;
        status = copy_pin_quick(c, p->granter, p->ring->d->domid, pin->gref, readonly, &active);
        c->flags = 0;
        if (status)
            return status;
        pin->frame = active->frame;
        pin->start = active->start;
        pin->length = active->length;
        *seen = (uint16_t)(pins->nr + 1);
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

static inline const uint8_t *blk_request(const struct blk_pass *p, uint32_t i)
{
    return (const uint8_t *)p->requests + (size_t)i * blk_layout(p)->request;
}

/* Where a request's segments stand in private memory; more than `most`: it is none. */
static inline const uint8_t *blk_list(const struct blk_pass *p, uint32_t i, uint32_t *nr,
                                      uint32_t *most)
{
    const uint8_t *request = blk_request(p, i);

    if (p->listed == i + 1) {
        *nr = p->nr_table;
        *most = p->table_size < BLK_PINS ? p->table_size : BLK_PINS;
        return p->table;
    }
    *nr = request[1];
    *most = BLKIF_MAX_SEGMENTS;
    return request + blk_layout(p)->segments;
}

#define BLK_PIN_FULL 1          /* too many for the room that is left */
#define BLK_PIN_REFUSED (-1)

/*
 * Pin the pages of one request, all or none, and say what goes where. -EINVAL: not what
 * blk_take or blk_indirect let pass (the bytes are Python's too, so nothing here trusts them),
 * or beyond `local_size`.
 */
static int blk_pin(struct call *c, const struct blk_pass *p, uint32_t i, int readonly,
                   uint64_t place, uint64_t local_size, struct blk_pins *pins)
{
    uint32_t before = pins->nr, nr, most;
    const uint8_t *list = blk_list(p, i, &nr, &most);
    int error = 0;

    if (nr > most || (blk_request(p, i)[0] != BLKIF_OP_READ) != readonly)
        return -EINVAL;
    if (nr > BLK_PINS - before)
        return BLK_PIN_FULL;
    for (uint32_t s = 0; s < nr && !error; s++, list += sizeof(struct blk_segment)) {
        struct blk_pin *pin = &pins->pin[pins->nr];
        struct blk_segment segment;

        memcpy(&segment, list, sizeof(segment));
        pin->gref = segment.gref;
        pin->offset = segment.first_sect * BLK_SECTOR;
        pin->len = (segment.last_sect + 1u) * BLK_SECTOR - pin->offset;
        pin->place = place;
        pin->request = i;
        if (segment.last_sect >= FRAME_SIZE / BLK_SECTOR || segment.first_sect > segment.last_sect ||
            place > local_size || pin->len > local_size - place)
            error = -EINVAL;
        else if (blk_pin_page(c, p, pins, pin, readonly))
            error = BLK_PIN_REFUSED;
        place += pin->len;
    }
    if (error)
        blk_unpin(c, p, pins, before, readonly);
    return error;
}

/*
 * Pin what fits of the requests in [*first, end) that are not refused; *first is the one that
 * comes next. What cannot be pinned is an ERROR, and counts in *failed. `places` NULL: data goes
 * to no private memory.
 */
static int blk_pin_some(struct call *c, struct blk_pass *p, uint32_t *first, uint32_t end,
                        int readonly, const uint64_t *places, uint64_t local_size,
                        struct blk_pins *pins, int64_t *failed)
{
    for (; *first < end; ++*first) {
        int error;

        if (p->verdicts[*first])
            continue;
        error = blk_pin(c, p, *first, readonly, places ? places[*first] : 0, local_size, pins);
        if (error == BLK_PIN_FULL)
            return 0;
        if (error == BLK_PIN_REFUSED) {
            p->verdicts[*first] = -1;
            ++*failed;
        } else if (error) {
            return error;
        }
    }
    return 0;
}

static inline uint8_t *blk_address(const struct blk_pass *p, const struct blk_pin *pin)
{
    return frame_address(p->ring->d->m, pin->frame) + pin->offset;
}

static void blk_move(struct call *c, const struct blk_pass *p, const struct blk_pin *pin,
                     int to_guest, uint8_t *local)
{
    if (to_guest)
        shared_copy_in(c, blk_address(p, pin), local + pin->place, pin->len);
    else
        shared_copy_out(c, local + pin->place, blk_address(p, pin), pin->len);
}

/*
 * Move the data of the requests in [first, end), of one operation, that are not refused,
 * between their granted pages and local + places[i]. How many became an ERROR.
 */
static int64_t blk_copy(struct blk_pass *p, uint32_t first, uint32_t end, const uint64_t *places,
                        void *local, uint64_t local_size)
{
    domain *self = p->ring->d;
    struct call c = call_begin(self->m, self->domid, 0);
    struct blk_pins pins;
    int64_t failed = 0;
    int error = 0, readonly;

    KERNEL_ENTER(self->m);
    if (first > end || end > p->ring->size)
        return -EINVAL;
    readonly = first < end && blk_request(p, first)[0] != BLKIF_OP_READ;
    blk_pins_clear(&pins);
    while (first < end && !c.aborted && !error) {
        error = blk_pin_some(&c, p, &first, end, readonly, places, local_size, &pins, &failed);
        for (uint32_t i = 0; i < pins.nr && !error; i++)
            blk_move(&c, p, &pins.pin[i], !readonly, local);
        blk_unpin(&c, p, &pins, 0, readonly);
    }
    return error ? error : call_end(&c, failed);
}

struct blk_io {
    int fd, readonly;           /* of the guest's pages: a write to the file */
    uint64_t end;               /* of the disk, or of a file that became shorter */
};

/* A write makes such a file longer again, a read would fail when a part of it is in the pages. */
static struct blk_io blk_io_of(int fd, int readonly, uint64_t size)
{
    struct stat status;
    struct blk_io io = { fd, readonly, size };

    if (!readonly && !fstat(fd, &status) && S_ISREG(status.st_mode) &&
        (uint64_t)status.st_size < size)
        io.end = (uint64_t)status.st_size;
    return io;
}

/* Pins [from, to) and the file from `offset` on; -1: an error, or the file ends before. */
static int blk_transfer(const struct blk_pass *p, const struct blk_pins *pins, uint32_t from,
                        uint32_t to, struct blk_io io, uint64_t offset)
{
    struct iovec vector[BLK_PINS], *at = vector;
    uint64_t bytes = 0;
    int nr = (int)(to - from);

    for (uint32_t i = from; i < to; i++) {
        vector[i - from] = (struct iovec){ blk_address(p, &pins->pin[i]), pins->pin[i].len };
        bytes += pins->pin[i].len;
    }
    if (bytes > io.end || offset > io.end - bytes)
        return -1;
    while (nr) {
        ssize_t done = io.readonly ? pwritev(io.fd, at, nr, (off_t)offset)
                                   : preadv(io.fd, at, nr, (off_t)offset);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        offset += (uint64_t)done;
        for (; nr && (size_t)done >= at->iov_len; nr--, at++)
            done -= (ssize_t)at->iov_len;
        if (nr) {
            at->iov_base = (uint8_t *)at->iov_base + done;
            at->iov_len -= (size_t)done;
        }
    }
    return 0;
}

/* Where the pins of the request at `from` end; *bytes: how many they are, added up. */
static inline uint32_t blk_pins_of(const struct blk_pins *pins, uint32_t from, uint64_t *bytes)
{
    uint32_t to = from;

    for (; to < pins->nr && pins->pin[to].request == pins->pin[from].request; to++)
        *bytes += pins->pin[to].len;
    return to;
}

/*
 * One I/O for pins [from, to), which are neighbours in the file; if it fails, one for each
 * request alone, to see whose the error is.
 */
static int64_t blk_extent(struct blk_pass *p, const struct blk_pins *pins, uint32_t from,
                          uint32_t to, struct blk_io io)
{
    uint64_t bytes = 0, offset = p->offsets[pins->pin[from].request];
    int64_t failed = 0;

    if (!blk_transfer(p, pins, from, to, io, offset))
        return 0;
    if (blk_pins_of(pins, from, &bytes) == to) {
        p->verdicts[pins->pin[from].request] = -1;
        return 1;
    }
    for (uint32_t end; from < to; from = end) {
        end = blk_pins_of(pins, from, &bytes);
        failed += blk_extent(p, pins, from, end, io);
    }
    return failed;
}

/* I/Os as long as neighbours allow: merged by the disk's offset only, never by frames (XSA-229). */
static int64_t blk_extents(struct blk_pass *p, const struct blk_pins *pins, struct blk_io io)
{
    int64_t failed = 0;

    for (uint32_t from = 0, to; from < pins->nr; from = to) {
        uint64_t end = p->offsets[pins->pin[from].request];

        for (to = from; to < pins->nr && p->offsets[pins->pin[to].request] == end;)
            to = blk_pins_of(pins, to, &end);
        failed += blk_extent(p, pins, from, to, io);
    }
    return failed;
}

/*
 * As blk_copy, between granted pages and a file of a disk of `size` bytes, there at offsets[i],
 * without a copy in between. -EAGAIN: somebody watches every access to memory, which a system call is none of;
 * copy instead.
 */
static int64_t blk_file(struct blk_pass *p, uint32_t first, uint32_t end, int fd, uint64_t size)
{
    domain *self = p->ring->d;
    struct call c = call_begin(self->m, self->domid, 0);
    struct blk_pins pins;
    struct blk_io io;
    int64_t failed = 0;
    int error = 0, readonly;

    KERNEL_ENTER(self->m);
    if (first > end || end > p->ring->size)
        return -EINVAL;
    if (self->m->hook)
        return -EAGAIN;
    readonly = first < end && blk_request(p, first)[0] != BLKIF_OP_READ;
    io = blk_io_of(fd, readonly, size);
    blk_pins_clear(&pins);
    while (first < end && !error) {
        error = blk_pin_some(&c, p, &first, end, readonly, NULL, UINT64_MAX, &pins, &failed);
        if (!error)
            failed += blk_extents(p, &pins, io);
        blk_unpin(&c, p, &pins, 0, readonly);
    }
    return error ? error : failed;
}

#define BLK_REFUSED 2

/*
 * The verdict on request i, which is indirect, and its segments, copied once into the table:
 * BLKIF_OP_READ or BLKIF_OP_WRITE, or BLK_REFUSED. From here on, and in its response, it is
 * what it does: a Linux frontend insists on that. `sectors`: of the disk; `alignment`: sectors
 * in a logical one, less 1.
 */
static int64_t blk_indirect(struct blk_pass *p, uint32_t i, uint64_t sectors, int readonly,
                            uint32_t alignment)
{
    const struct blk_layout *layout = blk_layout(p);
    domain *self = p->ring->d;
    struct call c = call_begin(self->m, self->domid, 0);
    uint8_t *request = (uint8_t *)p->requests + (size_t)i * layout->request;
    uint32_t units = 0, gref;
    uint16_t nr;
    uint64_t sector;

    KERNEL_ENTER(self->m);
    if (i >= p->ring->size)
        return -EINVAL;
    memcpy(&nr, request + 2, sizeof(nr));
    memcpy(&sector, request + layout->sector, sizeof(sector));
    memcpy(&gref, request + layout->indirect_grefs, sizeof(gref));
    request[0] = request[1];
    p->verdicts[i] = -1;
    /* One page has them all: BLK_PINS are half of what it holds. */
    if (request[0] > BLKIF_OP_WRITE || !nr || nr > p->table_size || nr > BLK_PINS)
        return BLK_REFUSED;
    if (copy_piece(&c, self, p->granter, 0, gref, 0, nr * (uint32_t)sizeof(struct blk_segment),
                   p->table) || c.aborted)
        return call_end(&c, BLK_REFUSED);
    if (blk_segments(p->table, nr, &p->sectors[i], &units) || (request[0] && readonly) ||
        ((units | (uint32_t)sector) & alignment) || sector > sectors ||
        p->sectors[i] > sectors - sector)
        return BLK_REFUSED;
    p->offsets[i] = sector << BLK_SECTOR_SHIFT;
    p->nr_table = nr;
    p->listed = i + 1;
    p->verdicts[i] = 0;
    return request[0];
}
