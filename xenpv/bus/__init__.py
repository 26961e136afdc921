"""XenBus: what the PV drivers of a guest stand on. Written apart from `back`, on purpose."""
