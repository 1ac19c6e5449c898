"""The network shield: an enclave's network namespace, whose only way out is TLS between attested enclaves.

- `namespace` makes the namespace and its rules (`netlink`, `rules`): what the program connects to comes to the proxy,
  or is refused at once and counted.
- `proxy` carries each connection as one TLS 1.3 tunnel (`tunnel`) to the proxy of a member, on a few threads (`loop`).
- `members` says who these are, as the CAS tells it; `identity` what this enclave shows them, and wants to be shown.
- `wired` does without a proxy where WireGuard carries the mesh: a device (`wireguard`, `links`), its own rules
  (`wired_rules`), and connections that are reset when a member goes (`severed`).
- `egress` is the way to hosts outside, by `way` for each connection, and `published` what outsiders reach.
"""
