"""`strongroom run`: an unmodified program in an enclave."""
