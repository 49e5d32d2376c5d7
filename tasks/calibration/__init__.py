"""Evaluates the estimators against an exact oracle (statistics of section 8)."""
