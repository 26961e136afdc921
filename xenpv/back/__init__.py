"""Backend drivers of any domain. Written apart from `bus`, on purpose."""
