"""Progress and errors."""
