"""Layers of the models beside it."""
