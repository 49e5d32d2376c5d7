"""Integration with Prefect: task runners, artifacts, deployments."""
