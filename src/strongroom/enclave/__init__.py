"""Enclaves for unmodified programs: measure, launch, boot.

`config.py` says what is launched; `measure.py` digests it; `launch.py` and `sandbox.py` are the untrusted host's side,
`boot.py` and `program.py` run inside; `control.py` is the wire between the two.
"""
