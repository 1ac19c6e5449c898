"""Attestation: from bytes that claim to come from an enclave to a result that cannot be had without checking them.

Read in this order:

- `binding`: what an enclave signs, so that its evidence holds for one channel, one nonce and one set of claims.
- `evidence`: parse. Bytes become a typed report; nothing is trusted.
- `verify`: signatures and chains, with endorsements and the time as arguments. Who vouches for these claims?
- `appraise`: claims against reference values. Do we want what they vouch for?
- `token`: signed, dated statements, such as an attestation result that others rely on.
- `attester` and `tee`: what makes evidence, one file per TEE.
- `endorsements`: what vendors sign, fetched, cached and bundled for `verify`.

Invariants:

- `binding`, `evidence`, `verify`, `appraise` and `token` read no clock, no network and no file, and never import
  `tee` or `endorsements`.
- Verifying and appraising raise; neither returns a bool. An `AttestationResult` comes from `appraise` alone.
- Nothing is accepted by absence: an empty list of measurements accepts none, an unknown TEE is refused.
"""
