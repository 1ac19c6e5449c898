"""Sealed data sets for NumPy, PyTorch and tf.data."""
