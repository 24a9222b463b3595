"""fastvi inside other packages: each is optional, and imported only when asked for."""
