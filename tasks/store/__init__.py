"""The content-addressed cache."""
