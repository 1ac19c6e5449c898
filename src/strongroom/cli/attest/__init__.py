"""`strongroom attest`: what evidence says, whether its vendor vouches for it, and whether a policy wants it."""
