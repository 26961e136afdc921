/* Preloaded into xl by tests/peers/test_xl.py: a host without Xen, just enough that
 * `xl -N create -n FILE` reads the file and prints what it makes of it.
 */
#include <stddef.h>

static char handle[4096];

void *xc_interface_open(void) { return handle; }
int xc_interface_close(void) { return 0; }
void *xs_open(void) { return handle; }
void xs_close(void) { }

int xc_version(void) { return 0; }
int xc_get_max_cpus(void) { return 0; }
int xc_physinfo(void) { return 0; }
long xc_sharing_freed_pages(void) { return 0; }
long xc_sharing_used_frames(void) { return 0; }
