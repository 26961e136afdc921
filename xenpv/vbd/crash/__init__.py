"""XenCrsh: the disk driver of a system that has crashed, or that writes its hibernation file."""
