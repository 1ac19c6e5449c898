"""Lineage: where a model comes from, said by the CAS that appraised its training, for everybody to check.

`statement.py` is what is said; `tree.py` and `resumes.py` are what it says of data and of mirrors; `verify.py` walks it
back. Pure, but for `tree.py`, which reads what it is given. The normative page is docs/spec/lineage.md.
"""

SUFFIX = ".lineage.json"
"""Behind the name of an output: the file with its statement."""
