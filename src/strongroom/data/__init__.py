"""Sealed data sets for NumPy, PyTorch and tf.data.

- `SealedDataset` reads records of arrays in sealed files, in any order, without ever holding the whole in memory.
- `collate` gives PyTorch's `DataLoader` its batches as tensors, without a copy of each record.
- `seal_arrays` writes arrays into a sealed file; `seal_once` does so at the first start only, whatever crashes.
- `Normalise` says what is made of values, stored small, when they are read.
"""

from strongroom.data.batch import Batch, collate
from strongroom.data.dataset import SealedDataset
from strongroom.data.normalise import Normalise
from strongroom.data.once import seal_once
from strongroom.data.order import Batches, Order
from strongroom.data.write import seal_arrays

__all__ = ["Batch", "Batches", "Normalise", "Order", "SealedDataset", "collate", "seal_arrays", "seal_once"]
