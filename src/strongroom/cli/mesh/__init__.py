"""`strongroom mesh`."""
