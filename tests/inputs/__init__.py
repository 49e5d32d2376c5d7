"""Questions and recorded tables."""
