"""What runs processes: local processes."""
