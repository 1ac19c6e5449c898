"""Who calls: administrators by key or token, tenants' namespaces, and the limits of each."""
