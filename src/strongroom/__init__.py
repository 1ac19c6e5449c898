"""Strongroom trains and serves machine-learning models on machines their owners do not trust."""

__version__ = "0.1.0.dev0"
