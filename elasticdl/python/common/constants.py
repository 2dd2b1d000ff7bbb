"""The import path of `Mode` in users' models."""

from elasticdl.model.mode import Mode

__all__ = ["Mode"]
