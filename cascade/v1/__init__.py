"""Generated from proto/cascade/v1 by ``make stubs``; only ``cascade.wire`` imports it."""
