"""Functions of shared values that are no arithmetic: each states its range, its greatest error and its rounds."""
