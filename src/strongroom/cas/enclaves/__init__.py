"""What the CAS decides of an enclave that attests: leases, revocations, what it is given, and what is refused."""
