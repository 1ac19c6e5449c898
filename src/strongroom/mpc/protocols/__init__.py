"""The protocols: each a function of shared values that all three parties call."""
