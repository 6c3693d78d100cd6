"""CMU's systems: what they add to the baseline."""
