"""A model in several enclaves: each holds a run of its units, and the front door takes a request through them.

Read in this order:

- `document`: what the pipeline is; every part of it is measured with it.
- `cut`: makes the document and the parts' models of a model and a plan, at the owner's.
- `frames`: tensors in frames of declared sizes.
- `link`: the front door's connections to a part: several requests under way, and what is not answered is sent again on
  the next one. `alive` has signs of life and how long they are waited for, `place` where a part on another machine is.
- `part`: the other end, in an enclave of its own.
- `model`: the pipeline as the front door serves it. `batch` has requests of few rows run together, `tick` has frames
  leave at fixed moments.

Rules:

- The front door is in the middle: each enclave of a part has one link, to it. What skips a part never enters it.
- A link is mutual TLS 1.3 between enclaves whose certificates the CAS issued, each for its own policy; the part then
  says which pipeline it is of, and which part. The host carries bytes: what it changes, drops, repeats or reorders ends
  the link.
- A request is answered once, or fails within its deadline: a link that ends is made again, and what it had not answered
  is sent again. Running a part twice changes nothing.
"""
