"""Models in this process, by transformers: scoring, and sampling from shared prefixes."""
