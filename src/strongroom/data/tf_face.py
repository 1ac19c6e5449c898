"""The tf.data face: TensorFlow is imported when it is asked for."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from strongroom.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from strongroom.data.dataset import SealedDataset


def to_tf(
    dataset: SealedDataset, size: int, *, shuffle: bool, seed: int, epoch: int, window: int | None, drop_last: bool
) -> Any:
    """As `SealedDataset.to_tf`."""
    if dataset.transformed:
        raise UsageError("to_tf: of a data set with a transform, wanted one without", hint="use map() of tf.data")
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError:
        raise MissingDependencyError("to_tf: needs TensorFlow", hint="pip install 'strongroom[tensorflow]'") from None
    rows = size if drop_last else None
    signature = tuple(
        tf.TensorSpec((rows, *shape), tf.dtypes.as_dtype(dtype))
        for shape, dtype in zip(dataset.shapes, dataset.dtypes, strict=True)
    )
    batches = len(dataset.batch_sampler(size, drop_last=drop_last))
    epochs = itertools.count(epoch)

    def one_epoch() -> Iterator[Any]:
        return dataset.batches(size, shuffle=shuffle, seed=seed, epoch=next(epochs), window=window, drop_last=drop_last)

    made = tf.data.Dataset.from_generator(one_epoch, output_signature=signature if len(signature) > 1 else signature[0])
    # A generator has no length that tf.data knows; Keras then counts the first epoch and warns at its end.
    return made.apply(tf.data.experimental.assert_cardinality(batches))
