/*
 * Structures and constants of Xen's public headers (io/ring.h, io/blkif.h, io/netif.h,
 * grant_table.h), for drivers that are built without libxen-dev. One that has Xen's own
 * includes those instead.
 */
#ifndef XENPV_IO_H
#define XENPV_IO_H

#include <stdint.h>

#include "../../../abi/decl/xen.h"
#include "../../../abi/decl/grant_table.h"
#include "../../../abi/decl/netif.h"
#include "../../../abi/decl/blkif.h"

/* XenbusState, io/xenbus.h */
enum {
    XenbusStateUnknown = 0,
    XenbusStateInitialising = 1,
    XenbusStateInitWait = 2,
    XenbusStateInitialised = 3,
    XenbusStateConnected = 4,
    XenbusStateClosing = 5,
    XenbusStateClosed = 6
};

#endif
