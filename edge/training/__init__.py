"""Learning on the device."""
