"""Secrets inside PyTorch: a tensor whose elements no server knows, computed on by unmodified modules.

Start with `shared_tensor.py`, whose rules everything keeps; then `storage.py`, and `layers.py` for what layers become.
"""
