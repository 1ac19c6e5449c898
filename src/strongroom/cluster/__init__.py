"""Clusters of others in enclaves: Ray's nodes over the mesh.

`node` is the program of each enclave: it starts Ray's own processes there (`processes`), and the head calls the roll of
its nodes (`roll`) before the job begins. Ray is an optional extra, and only `joined` imports it.
"""
