"""Decides; no clock, thread, file, socket, log, numpy, environment."""
