"""Whole runs, as users have them."""
