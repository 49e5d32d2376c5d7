"""Sampling and scoring."""
