"""`strongroom mount`: a vault as a directory that unmodified programs read and write."""
