"""Figures of adapters that learn: gradients on the device, the protocol, the loop."""
