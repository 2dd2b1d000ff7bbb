"""Ratios against what exists, each taken in one run."""
