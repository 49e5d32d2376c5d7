"""Prefect and Ray."""
