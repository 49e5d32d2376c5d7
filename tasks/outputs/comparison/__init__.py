"""Runs side by side: students, checkpoints, nights."""
