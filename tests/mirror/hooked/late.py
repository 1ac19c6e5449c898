"""A module that a script imports when it is under way."""

counted = []


def count(step):
    for one in (step, -step):
        counted.append(one)
