"""The CAS's HTTP API (docs/spec/cas.md): who may ask what, and what the answers are.

`service/app.py` puts it together.
"""
