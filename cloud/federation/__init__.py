"""Federated rounds on the cluster: who takes part, what counts, and which adapter comes of it."""
