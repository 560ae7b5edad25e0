"""The decision's figures: how often certificates are wrong where the truth is known, and how much
they keep on the device. One module a group of figures."""
