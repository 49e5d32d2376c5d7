"""Servers and pages."""
