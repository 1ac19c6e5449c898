"""Sealed data sets for NumPy, PyTorch and tf.data.

- `SealedDataset` reads records of arrays in sealed files, in any order, without ever holding the whole in memory.
- `collate` gives PyTorch's `DataLoader` its batches as tensors, without a copy of each record.
- `seal_arrays` writes arrays into a sealed file.
"""

from strongroom.data.batch import Batch, collate
from strongroom.data.dataset import SealedDataset
from strongroom.data.order import Batches, Order
from strongroom.data.write import seal_arrays

__all__ = ["Batch", "Batches", "Order", "SealedDataset", "collate", "seal_arrays"]
