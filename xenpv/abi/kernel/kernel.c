/* One translation unit: the functions are static and small, and inline into each other. */
#include "memory.c"
#include "ring.c"
#include "grant.c"
#include "blk.c"
#include "net.c"
#include "evtchn.c"
#include "checksum.c"
