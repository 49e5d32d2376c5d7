"""Servers: Prefect's own, the page of runs, and what guards them."""
