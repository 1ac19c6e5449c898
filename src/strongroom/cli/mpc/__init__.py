"""`strongroom mpc`: computing on secrets, by two servers that do not collude and a dealer that sees no data."""
