"""Stage 6: pooled scores and tables."""
