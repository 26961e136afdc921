"""A Xen platform that you import."""
