"""In which order: the flows, and the command line."""
