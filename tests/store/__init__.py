"""The store, its life and its outages."""
