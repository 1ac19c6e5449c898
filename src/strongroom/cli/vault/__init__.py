"""`strongroom vault`: look into a vault, copy in and out, verify, back up, and say who can open it."""
