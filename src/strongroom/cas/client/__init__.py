"""The other end: an owner and an enclave that talk to a CAS."""
