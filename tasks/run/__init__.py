"""One run: what it needs, the keys of what it makes, and the shells of its stages."""
