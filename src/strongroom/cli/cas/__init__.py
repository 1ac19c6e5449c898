"""`strongroom cas`: run a CAS, and an owner's dealings with one."""
