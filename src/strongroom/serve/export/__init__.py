"""A model of PyTorch, Keras, TensorFlow or scikit-learn as the ONNX file that `serve` runs, in one call.

The file is taken only if it answers as the framework does: both run on the example, and the answers are compared.

- `make`: `export`, which finds out whose the model is, compares, and writes.
- `from_torch`, `from_keras`, `from_tensorflow`, `from_sklearn`: one framework each, imported when its models come.
- `files`: models in files, as far as they can be read without running what they hold.
"""

from strongroom.serve.export.make import Exported, export

__all__ = ["Exported", "export"]
