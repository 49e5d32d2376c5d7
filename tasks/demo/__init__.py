"""The demo's own task, questions and models: chains of one-digit arithmetic, modulo ten."""
