"""The commands, and what they read."""
