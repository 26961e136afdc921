"""A guest on its way: into a file and back, from one platform to another."""
