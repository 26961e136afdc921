/*
 * Preloaded beside xenstored_stub: where the daemon opens /proc/xen/NAME it gets
 * $XENSTORED_RUNDIR/NAME. A library of its own, since the other one is versioned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int redirected(const char *path, int flags, int mode)
{
    static int (*real)(const char *, int, ...);
    char there[4096];

    if (!real)
        real = dlsym(RTLD_NEXT, "open");
    if (!strncmp(path, "/proc/xen/", 10)) {
        snprintf(there, sizeof(there), "%s/%s", getenv("XENSTORED_RUNDIR"), path + 10);
        path = there;
    }
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected(path, flags, mode);
}

int __open_2(const char *path, int flags) { return redirected(path, flags, 0); }
int __open64_2(const char *path, int flags) { return redirected(path, flags, 0); }
