"""Error numbers of hypercalls (errno.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class XEN_ERRNO(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """XEN_ERRNO.EINVAL is XEN_EINVAL: Linux' numbers, whatever the host's are."""

    EPERM = lib.XEN_EPERM
    ENOENT = lib.XEN_ENOENT
    ESRCH = lib.XEN_ESRCH
    EIO = lib.XEN_EIO
    ENXIO = lib.XEN_ENXIO
    E2BIG = lib.XEN_E2BIG
    ENOEXEC = lib.XEN_ENOEXEC
    EBADF = lib.XEN_EBADF
    ECHILD = lib.XEN_ECHILD
    EAGAIN = lib.XEN_EAGAIN
    EWOULDBLOCK = lib.XEN_EWOULDBLOCK
    ENOMEM = lib.XEN_ENOMEM
    EACCES = lib.XEN_EACCES
    EFAULT = lib.XEN_EFAULT
    EBUSY = lib.XEN_EBUSY
    EEXIST = lib.XEN_EEXIST
    EXDEV = lib.XEN_EXDEV
    ENODEV = lib.XEN_ENODEV
    ENOTDIR = lib.XEN_ENOTDIR
    EISDIR = lib.XEN_EISDIR
    EINVAL = lib.XEN_EINVAL
    ENFILE = lib.XEN_ENFILE
    EMFILE = lib.XEN_EMFILE
    ENOSPC = lib.XEN_ENOSPC
    EROFS = lib.XEN_EROFS
    EMLINK = lib.XEN_EMLINK
    EDOM = lib.XEN_EDOM
    ERANGE = lib.XEN_ERANGE
    EDEADLK = lib.XEN_EDEADLK
    EDEADLOCK = lib.XEN_EDEADLOCK
    ENAMETOOLONG = lib.XEN_ENAMETOOLONG
    ENOLCK = lib.XEN_ENOLCK
    ENOSYS = lib.XEN_ENOSYS
    ENOTEMPTY = lib.XEN_ENOTEMPTY
    ENODATA = lib.XEN_ENODATA
    ETIME = lib.XEN_ETIME
    EBADMSG = lib.XEN_EBADMSG
    EOVERFLOW = lib.XEN_EOVERFLOW
    EILSEQ = lib.XEN_EILSEQ
    ENOTSOCK = lib.XEN_ENOTSOCK
    EMSGSIZE = lib.XEN_EMSGSIZE
    EOPNOTSUPP = lib.XEN_EOPNOTSUPP
    EADDRINUSE = lib.XEN_EADDRINUSE
    EADDRNOTAVAIL = lib.XEN_EADDRNOTAVAIL
    ENOBUFS = lib.XEN_ENOBUFS
    EISCONN = lib.XEN_EISCONN
    ENOTCONN = lib.XEN_ENOTCONN
    ETIMEDOUT = lib.XEN_ETIMEDOUT
    ECONNREFUSED = lib.XEN_ECONNREFUSED
