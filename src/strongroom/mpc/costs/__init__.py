"""What a program on secrets costs, before it runs and while it does, and where its numbers go wrong.

- `predict.cost` runs the parties' own code against nobody: what it counts is what the channels will count.
- `profile.profile` measures a running party, operation by operation.
- `debug.debug` looks at both servers' shares at once, which only parties in one process can.
"""
