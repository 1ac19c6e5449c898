"""What the peers of `benchmarks.mpc` compute, and how each of them does: run by the peers' own interpreters."""
