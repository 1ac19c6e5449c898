"""How a CAS's root secret is kept: 32 bytes from which the key of its rows and that of its CA key are derived.

`state/root_secret.py` makes the secret and recovers it; `state/way.py` says what a way is, and each has a module of its
own: `state/trust_disk.py` a file, `shares.py` owners (with `shamir.py`, `share_files.py` and `locked.py`), `peer.py`
another instance of the CAS, `tpm.py`, `snp.py` and `sgx.py` the platform.
"""
