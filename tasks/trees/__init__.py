"""Stage 2: where to branch, how many draws, and the draws."""
