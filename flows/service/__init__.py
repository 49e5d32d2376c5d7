"""Servers: Prefect's own, the reports of runs, and their access control."""
