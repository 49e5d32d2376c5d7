"""Support for long-running work: errors, progress, processes."""
