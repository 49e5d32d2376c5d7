"""Stage 2: trees of draws, by planner."""
