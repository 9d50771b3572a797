"""Measurements: `make bench`. Never asserted anywhere; the machines are noisy, so medians of several runs."""
