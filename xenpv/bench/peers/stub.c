/*
 * What xenstored and oxenstored need of libxenevtchn, libxengnttab and libxenctrl, out of
 * files in $XENSTORED_RUNDIR: preloaded, it lets either daemon run without Xen.
 *
 *   event       a FIFO; each u32 written to it is a port that has an event
 *   ring-<N>    the ring page of domain N, mapped as its grant or its only frame
 *   domain-<N>  exists as long as the domain does; its first byte: 'r' running, 's' shut down,
 *               'd' dead
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xenctrl.h>

#define VIRQ_PORT 1

static int event_fd = -1;
static char handle;

static int file(const char *kind, unsigned int number, int flags)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s-%u", getenv("XENSTORED_RUNDIR"), kind, number);
    return open(path, flags);
}

static void *event_open(void)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/event", getenv("XENSTORED_RUNDIR"));
    event_fd = open(path, O_RDWR | O_NONBLOCK);
    return event_fd < 0 ? NULL : &handle;
}

void *xenevtchn_open(void *logger, unsigned int flags) { return event_open(); }
void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags) { return event_open(); }
int xenevtchn_close(void *xce) { return 0; }
int xenevtchn_fd(void *xce) { return event_fd; }
int xenevtchn_bind_virq(void *xce, unsigned int virq) { return VIRQ_PORT; }
int xenevtchn_notify(void *xce, uint32_t port) { return 0; }
int xenevtchn_unmask(void *xce, uint32_t port) { return 0; }
int xenevtchn_unbind(void *xce, uint32_t port) { return 0; }

int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t port)
{
    return 100 + domid;
}

int xenevtchn_pending(void *xce)
{
    uint32_t port;

    return read(event_fd, &port, sizeof(port)) == sizeof(port) ? (int)port : -1;
}

void *xengnttab_open(void *logger, unsigned int flags) { return &handle; }
int xengnttab_close(void *xgt) { return 0; }
int xengnttab_set_max_grants(void *xgt, uint32_t count) { return 0; }
int xengnttab_unmap(void *xgt, void *page, uint32_t count) { return munmap(page, 4096 * count); }

static void *map_ring(uint32_t domid, int prot)
{
    int fd = file("ring", domid, O_RDWR);
    void *page;

    if (fd < 0)
        return NULL;
    page = mmap(NULL, 4096, prot, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

void *xengnttab_map_grant_ref(void *xgt, uint32_t domid, uint32_t ref, int prot)
{
    return map_ring(domid, prot);
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t domid, int size, int prot,
                           unsigned long gfn)
{
    return map_ring(domid, prot);
}

xc_interface *xc_interface_open(xentoollog_logger *a, xentoollog_logger *b, unsigned flags)
{
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch) { return 0; }

/* The first byte of domain-<N>, or 0. */
static char state_of(uint32_t domid)
{
    int fd = file("domain", domid, O_RDONLY);
    char state = 'r';

    if (fd < 0)
        return 0;
    if (read(fd, &state, 1) < 0)
        state = 'r';
    close(fd);
    return state;
}

/* Only asked about one domain. */
int xc_domain_getinfo(xc_interface *xch, uint32_t domid, unsigned int max, xc_dominfo_t *info)
{
    char state = state_of(domid);

    if (!state)
        return 0;
    memset(info, 0, sizeof(*info));
    info->domid = domid;
    info->shutdown = state == 's';
    info->dying = state == 'd';
    return 1;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t domid, unsigned int max,
                          xc_domaininfo_t *info)
{
    char state = state_of(domid);

    if (!state)
        return 0;
    memset(info, 0, sizeof(*info));
    info->domain = domid;
    info->flags = state == 's' ? XEN_DOMINF_shutdown : state == 'd' ? XEN_DOMINF_dying : 0;
    return 1;
}
