"""The stages, against exact values."""
