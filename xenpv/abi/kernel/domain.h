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

struct extent {
    uint32_t start, end;
};

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
    uint8_t *vcpu_info[MAX_VCPUS];    /* in shared_info or where it was registered; NULL: no vcpu */
    /* grant_table.c */
    uint32_t *grant_frames, *status_frames;
    struct active_entry **active;     /* 512 a chunk, a chunk a frame */
    uint32_t nr_grant_frames, max_grant_frames, nr_status_frames;
    uint8_t grant_version;            /* 1 or 2 */
    uint8_t is_dying;                 /* nothing new is granted from here */
    uint8_t grant_ops;                /* operations on its entries under way */
    uint8_t is_pv;                    /* not translated: its frame numbers are the machine's */
    /* memory.c: own frames that a mapping pushed out of the p2m */
    uint32_t *unhooked;
    uint32_t nr_unhooked, room_unhooked;
};

typedef struct domain domain;

#endif
