"""`strongroom demo`: the whole story on real data, in front of your eyes."""
