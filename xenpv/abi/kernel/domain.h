/* What the kernel keeps of one domain. Each .c file owns the members that it names. */
#ifndef XENPV_DOMAIN_H
#define XENPV_DOMAIN_H

#include "access.h"

#define P2M_NONE 0
#define P2M_RAM 1
#define P2M_LAZY 2        /* RAM that was never touched: no frame stands for it yet */
#define P2M_GRANT_RW 3
#define P2M_GRANT_RO 4
#define P2M_FOREIGN 5
#define P2M_XEN 6         /* shared_info, grant table frames: owned by Xen */
#define P2M_TYPE_SHIFT 29
#define P2M_FRAME_MASK ((1u << P2M_TYPE_SHIFT) - 1)
#define P2M_LEAF 512u
#define P2M_PFNS (1u << 28)        /* no pfn at or above: 1 TiB */
#define P2M_TABLES_MIN 4096u       /* leaf tables whatever max_pages is: see domain_set_max_pages */
#define OWNER_XEN 0x7ff2
#define NR_DOMIDS 0x7ff0u          /* DOMID_FIRST_RESERVED */
#define MAX_VCPUS 128u           /* HVM_MAX_VCPUS */
#define PORTS_PER_BUCKET 64u     /* EVTCHNS_PER_BUCKET of an x86-64 Xen */

/* Xen's pin word: four counters of 8 bits, each at most 128 (xen/common/grant_table.c). */
#define PIN_HOST_WRITE 1u
#define PIN_HOST_READ (1u << 8)
#define PIN_DEVICE_WRITE (1u << 16)
#define PIN_DEVICE_READ (1u << 24)
#define PIN_WRITERS 0x00ff00ffu
#define PIN_OVERFLOW_SHIFT 7            /* an increment, shifted, is the bit that says 128 */

/* A pinned grant entry: what it was when it was pinned, whatever its granter writes since. */
struct active_entry {
    uint32_t pin;
    uint32_t frame;
    uint16_t domid;                 /* for whom */
    uint16_t start, length;         /* bytes of the page that may be copied */
    uint8_t is_sub_page;            /* a transitive entry counts as one: neither can be mapped */
    uint32_t hop_ref;
    struct domain *hop;             /* whose entry a transitive one stands for, or NULL */
};

/* vcpu.c: where a guest asked to have them; NULL: nowhere. Their pages are held. */
struct vcpu_areas {
    uint8_t *info_page, *runstate, *time;
    uint64_t runstate_guest, time_guest;    /* by guest address, all ones: nowhere */
};

struct domain {
    machine *m;
    /* p2m.c, memory.c */
    uint32_t **leaves;            /* by pfn / P2M_LEAF; NULL: nothing there */
    uint32_t *owned;              /* leaf numbers of the tables that are this domain's own */
    uint32_t nr_leaves, nr_owned, room_owned;
    uint32_t nr_tables, max_tables;    /* leaves that are not NULL, and their limit */
    uint32_t generation;          /* changes whenever a p2m entry stops being what it was */
    uint32_t tot_pages, max_pages;
    uint32_t nr_frames;           /* of tot_pages those that a frame stands for: touched once */
    uint32_t outstanding_pages;   /* claimed and not yet populated */
    uint32_t unhooked;            /* its RAM frames at no pfn any more, by frame_info.link */
    uint32_t foreign_special;     /* maps by others of frames that Xen made for it */
    uint8_t relinquished;         /* no more memory is given to it */
    uint32_t max_gpfn;            /* the highest pfn that was ever in use */
    uint16_t domid;
    uint8_t is_32bit;
    uint8_t *shared_info;
    uint8_t *vcpu_info[MAX_VCPUS];    /* in shared_info or where it was registered; NULL: no vcpu */
    /* evtchn.c, evtchn_fifo.c */
    struct evtchn **ports;        /* buckets of PORTS_PER_BUCKET; NULL before evtchn_grow */
    uint32_t nr_ports;            /* valid ports; never fewer again (XSA-338) */
    uint32_t nr_vcpus;
    uint8_t polling;              /* some vcpu waits in SCHEDOP_poll */
    struct fifo *fifo;            /* NULL: 2-level ABI */
    /* vcpu.c */
    struct vcpu_areas *vcpu_areas;
    uint8_t *dummy_vcpu_info;     /* of every vcpu >= 32 that registered none; NULL: no such vcpu */
    uint32_t nr_vcpu_areas;
    /* grant_table.c */
    uint32_t *grant_frames, *status_frames;
    struct active_entry **active;     /* 512 a chunk, a chunk a frame */
    uint32_t nr_grant_frames, max_grant_frames, nr_status_frames;
    uint8_t grant_version;            /* 1 or 2 */
    uint8_t is_dying;                 /* nothing new is granted from here */
    uint8_t grant_ops;                /* operations on its entries under way */
    uint8_t is_pv;                    /* not translated: its frame numbers are the machine's */
};

typedef struct domain domain;

/* vcpu.c; a dying domain's memory goes after what these hold. */
static void vcpu_unregister_all(domain *d);
static void vcpu_release(domain *d);
/* evtchn.c: what domain_release and domain_free give back of event channels. */
static void evtchn_release(domain *d);
static void evtchn_free_ports(domain *d);

#endif
