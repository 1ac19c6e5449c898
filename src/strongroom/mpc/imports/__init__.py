"""Models that were made elsewhere, as modules that run on plain tensors and on secrets alike.

- Whatever the file, it becomes a `Graph` of nodes (`graph.py`), which passes simplify (`passes.py`, `fusions.py`) and
  an `Imported` module runs (`module.py`), node by node, with ordinary torch functions (`operators`).
- Keras models and Hugging Face's are modules already; `keras.py` and `huggingface.py` say what they need.
- The graph, all shapes and small constants are public; weights are parameters. A party that is not to know the weights
  loads the architecture, which has all but their values.
"""
