"""HTTP and WebSocket: routes, access, limits, TLS, the life of the process."""
