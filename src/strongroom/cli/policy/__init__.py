"""`strongroom policy`: write, check, sign, compare and apply the document that says what may run."""
