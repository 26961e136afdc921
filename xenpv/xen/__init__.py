"""The hypervisor: machine memory, domains, event channels, grant tables, loop and trace."""
