"""Declarations of configuration, array layouts and table columns. Imports nothing heavy."""
