"""Parse: bytes become typed values, one file per format, and nothing is trusted. `verify` says whose word they are."""
