"""What is asked of Prefect: task runners, artifacts, deployments."""
