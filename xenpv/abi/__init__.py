"""Xen's public headers: layouts, constants, pure arithmetic and the C kernel; no state."""
