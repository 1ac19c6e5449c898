"""`strongroom mirror`: look into the mirror of a training, verify it, go back in it, and export from it."""
