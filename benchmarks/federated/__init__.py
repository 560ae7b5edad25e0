"""What adapters that learn over a fleet cost and gain. One module a group of figures."""
