"""A process that computes."""
