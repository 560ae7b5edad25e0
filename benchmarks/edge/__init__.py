"""The edge engine's figures: fidelity, size, speed beside its peers, memory, and what the runtime,
adapters, signals and closed answer sets cost. One module a group of figures."""
