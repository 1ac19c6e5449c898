"""What makes evidence, one file per TEE. This is I/O: parsing, verifying and appraising never import it."""
