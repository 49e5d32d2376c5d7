"""What a run's keys and tables were when they were last meant to change."""
