/* What the kernel keeps of one domain. Each .c file owns the members that it names. */
#ifndef XENPV_DOMAIN_H
#define XENPV_DOMAIN_H

#include "access.h"

#define P2M_NONE 0
#define P2M_RAM 1
#define P2M_HOLE 2        /* inside an extent, but ballooned out */
#define P2M_GRANT_RW 3
#define P2M_GRANT_RO 4
#define P2M_FOREIGN 5
#define P2M_XEN 6         /* shared_info, grant table frames: owned by Xen */
#define P2M_TYPE_SHIFT 29
#define P2M_FRAME_MASK ((1u << P2M_TYPE_SHIFT) - 1)
#define P2M_LEAF 512u
#define OWNER_XEN 0x7ff2
#define NR_DOMIDS 0x7ff0u          /* DOMID_FIRST_RESERVED */
#define MAX_VCPUS 128u           /* HVM_MAX_VCPUS */
#define PORTS_PER_BUCKET 64u     /* EVTCHNS_PER_BUCKET of an x86-64 Xen */

struct extent {
    uint32_t start, end;
};

struct active_entry {
    uint16_t domid;
    uint8_t readers, writers;     /* host-mapping and copy pins, at most 128 each */
    uint32_t frame;
};

struct domain {
    machine *m;
    uint32_t **leaves;
    struct extent *extents;
    uint32_t nr_leaves, nr_extents;
    uint32_t generation;          /* changes whenever a p2m entry stops being what it was */
    uint32_t tot_pages, max_pages;
    uint32_t nr_frames;           /* of tot_pages those that a frame stands for: touched once */
    uint16_t domid;
    uint8_t is_32bit;
    uint8_t *shared_info;
    uint8_t *vcpu_info[MAX_VCPUS];    /* in shared_info or where it was registered; NULL: neither */
    /* evtchn.c, evtchn_fifo.c */
    struct evtchn **ports;        /* buckets of PORTS_PER_BUCKET; NULL before evtchn_grow */
    uint32_t nr_ports;            /* valid ports; never fewer again (XSA-338) */
    uint32_t nr_vcpus;
    uint8_t polling;              /* some vcpu waits in SCHEDOP_poll */
    struct fifo *fifo;            /* NULL: 2-level ABI */
    uint32_t *grant_frames;
    struct active_entry *active;
    uint32_t nr_grant_frames, max_grant_frames;
};

typedef struct domain domain;

/* evtchn.c: what domain_release and domain_free give back of event channels. */
static void evtchn_release(domain *d);
static void evtchn_free_ports(domain *d);

#endif
