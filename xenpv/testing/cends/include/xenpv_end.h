/*
 * A C end: a backend or frontend driver under test, in place of xenpv's own.
 *
 * The driver defines `xenpv_driver`. All else is called by it, from inside the functions that
 * it names there or gives to xenpv_bind, xenpv_watch, xenpv_timer and their like; none of them
 * blocks, and no two functions of one domain run at once. Memory that another domain can see
 * is read and written through plain pointers: every load and store of it is seen.
 *
 * Results: 0 or a value, or negative: -errno, of grant operations GNTST_* of grant_table.h.
 */
#ifndef XENPV_END_H
#define XENPV_END_H

#include <stddef.h>
#include <stdint.h>

#define XENPV_PAGE_SIZE 4096

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xenpv_end xenpv_end;
typedef uint32_t xenpv_ref;         /* grant_ref_t */
typedef uint32_t xenpv_port;        /* evtchn_port_t */

typedef void (*xenpv_handler)(xenpv_end *end, void *context);
typedef void (*xenpv_watch_handler)(xenpv_end *end, void *context, const char *path);

/* What the platform calls. NULL: nothing is to be done. Of the first two a result below 0
 * breaks the device: `error` is written into its directory, its state goes to Closing. */
struct xenpv_driver {
    const char *name;
    /* The device's directory is there. */
    int (*probe)(xenpv_end *end);
    /* The other end wrote its `state`: an XenbusState of io/xenbus.h, 0 if it is gone. */
    int (*otherend_changed)(xenpv_end *end, int state);
    /* The device is gone. All that was made must be given back: what is left is an error. */
    void (*remove)(xenpv_end *end);
    /* Of a network backend: a frame of the bridge for the guest. */
    void (*receive)(xenpv_end *end, const void *frame, size_t size);
    /* Of a network frontend: a program's frame. */
    void (*send)(xenpv_end *end, const void *frame, size_t size);
    /* Of a block frontend: a program's request, which xenpv_complete ends, once, now or later.
     * `operation` is one of BLKIF_OP_READ, WRITE, FLUSH_DISKCACHE, DISCARD, `size` in bytes;
     * `data` is what to write, there only until this returns. */
    void (*submit)(xenpv_end *end, uint64_t id, unsigned operation, uint64_t sector,
                   const void *data, size_t size);
};

extern const struct xenpv_driver xenpv_driver;

/* Who it is. Paths are the device's directories, without a slash at the end. */
unsigned xenpv_domid(const xenpv_end *end);
unsigned xenpv_otherend_id(const xenpv_end *end);
const char *xenpv_nodename(const xenpv_end *end);
const char *xenpv_otherend(const xenpv_end *end);
void xenpv_set_data(xenpv_end *end, void *data);
void *xenpv_data(const xenpv_end *end);

/* Own pages, adjacent, between inaccessible ones; NULL if there are no more. */
void *xenpv_alloc_pages(xenpv_end *end, unsigned count);
void xenpv_free_pages(xenpv_end *end, void *pages);

/* Own grants, to the other end. `page` is one of xenpv_alloc_pages. A reference, or -ENOSPC. */
int xenpv_grant_access(xenpv_end *end, const void *page, int readonly);
/* -EBUSY: the other end has it mapped, and it stays granted. */
int xenpv_end_access(xenpv_end *end, xenpv_ref ref);

/* The other end's grants. A map is adjacent pages in the order of `refs`, all or none. */
int xenpv_map(xenpv_end *end, const xenpv_ref *refs, unsigned count, int readonly, void **pages);
int xenpv_unmap(xenpv_end *end, void *pages);
/* GNTTABOP_copy of at most a page; `to` and `from` may be any memory of the driver. */
int xenpv_copy_from(xenpv_end *end, xenpv_ref ref, unsigned offset, void *to, unsigned size);
int xenpv_copy_to(xenpv_end *end, xenpv_ref ref, unsigned offset, const void *from,
                  unsigned size);

/* Event channels of the other end: a local port, unmasked; events of it call `handler`. */
int xenpv_bind(xenpv_end *end, xenpv_port remote, xenpv_handler handler, void *context);
int xenpv_alloc_unbound(xenpv_end *end, xenpv_handler handler, void *context);
int xenpv_notify(xenpv_end *end, xenpv_port port);
int xenpv_mask(xenpv_end *end, xenpv_port port);
int xenpv_unmask(xenpv_end *end, xenpv_port port);
int xenpv_close(xenpv_end *end, xenpv_port port);

/* The store. `tx` 0: no transaction. Paths that do not begin with a slash are in the device's
 * own directory. A value is at most 4,096 bytes, and a string: a NUL is added. */
int xenpv_read(xenpv_end *end, unsigned tx, const char *path, char *value, size_t size);
int xenpv_write(xenpv_end *end, unsigned tx, const char *path, const char *value);
int xenpv_rm(xenpv_end *end, unsigned tx, const char *path);
/* printf and scanf of one node; scanf gives the number of items, or -ENOENT. */
int xenpv_printf(xenpv_end *end, unsigned tx, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int xenpv_scanf(xenpv_end *end, unsigned tx, const char *path, const char *format, ...)
    __attribute__((format(scanf, 4, 5)));
/* The same of the other end's directory. */
int xenpv_gather(xenpv_end *end, unsigned tx, const char *key, const char *format, ...)
    __attribute__((format(scanf, 4, 5)));
/* An id > 0; -EAGAIN of the end: somebody else wrote, begin again. */
int xenpv_transaction_start(xenpv_end *end);
int xenpv_transaction_end(xenpv_end *end, unsigned tx, int abort);
/* An id. `handler` gets the path that changed, and is called once for the registration. */
int xenpv_watch(xenpv_end *end, const char *path, xenpv_watch_handler handler, void *context);
int xenpv_unwatch(xenpv_end *end, int watch);

/* xenbus_switch_state; xenbus_dev_fatal; a line in the trace. */
int xenpv_switch_state(xenpv_end *end, int state);
void xenpv_fatal(xenpv_end *end, const char *format, ...) __attribute__((format(printf, 2, 3)));
void xenpv_log(xenpv_end *end, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Virtual time in nanoseconds. `after`: call `handler` once, so long from now; an id. */
uint64_t xenpv_now(xenpv_end *end);
int xenpv_after(xenpv_end *end, uint64_t ns, xenpv_handler handler, void *context);
/* Nothing happens if it was called. */
int xenpv_cancel(xenpv_end *end, int timer);

/* What a block backend serves, in sectors of 512 bytes. -EROFS, -EIO, -EINVAL. */
uint64_t xenpv_image_sectors(xenpv_end *end);
int xenpv_image_writable(xenpv_end *end);
int xenpv_image_read(xenpv_end *end, uint64_t sector, void *to, size_t size);
int xenpv_image_write(xenpv_end *end, uint64_t sector, const void *from, size_t size);
int xenpv_image_flush(xenpv_end *end);

/* Of a network backend: what the guest sent enters the bridge. */
int xenpv_transmit(xenpv_end *end, const void *frame, size_t size);
/* Of a network frontend: a frame for the programs. */
int xenpv_receive(xenpv_end *end, const void *frame, size_t size);
/* Of a block frontend: request `id` succeeded or not; `data` is what a read brought. */
void xenpv_complete(xenpv_end *end, uint64_t id, int okay, const void *data, size_t size);

#ifdef __cplusplus
}
#endif

#endif
