"""fastvi inside other packages. Each is optional, and is imported only on request."""
