"""XenIface and the guest agent."""
