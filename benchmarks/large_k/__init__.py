"""A training step with very many samples: memory and time against K."""
