"""Outputs of a run: tables, report, history."""
