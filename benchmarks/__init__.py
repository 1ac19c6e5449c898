"""Measurements of Strongroom against its goals: `python -m benchmarks NAME` (see `benchmarks.harness`)."""
