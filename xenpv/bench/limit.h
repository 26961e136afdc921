/*
 * Prototypes of the C limit, in the C that cffi's cdef reads.
 *
 * A run is `rounds` round trips of `batch` requests; it fills its result and gives 0, or
 * -EINVAL for sizes that fit no ring. Requests run on from one run to the next: the ring's
 * indices go on, so that a long bench also crosses the wrap of the slots.
 */
#define LIMIT_OWN 0       /* rings by the text of limit.c */
#define LIMIT_HOOKED 1    /* the same through the access seam, its hook unset; block ring only */
#define LIMIT_XEN 2       /* by the macros of Xen's io/ring.h; LIMIT_OWN where that was not found */

typedef struct limit limit;

struct limit_result {
    double ns;                /* of the whole run; CPU time of the thread */
    uint64_t requests;        /* queued by the frontend */
    uint64_t responses;       /* reaped by the frontend, OKAY */
    uint64_t refused;         /* reaped by the frontend, with an error */
    uint64_t bytes;           /* copied between granted pages and the backend */
    uint64_t req_events;      /* notifications that the backend asked for and got */
    uint64_t rsp_events;      /* and the frontend */
};

limit *limit_new(void);
void limit_free(limit *);
int limit_has_ring_h(void);
int limit_blk(limit *, uint32_t segments, uint32_t batch, uint32_t rounds, int text,
              struct limit_result *);
int limit_net(limit *, uint32_t size, uint32_t batch, uint32_t rounds, int text,
              struct limit_result *);
int limit_revoke(limit *, uint32_t page);
void limit_ring(limit *, int net, void *page);    /* the bytes of a ring's page */
