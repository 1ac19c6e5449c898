"""`strongroom doctor`: what this machine offers, what is missing, what that is needed for, and how to get it."""
