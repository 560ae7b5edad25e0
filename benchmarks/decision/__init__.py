"""The decision's figures: one module a group of figures."""
