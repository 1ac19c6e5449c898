"""What owners write and sign: policies, who may change them, grants and restores.

Nothing here reads a clock, file or network.
"""
