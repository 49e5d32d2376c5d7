"""The stages of the pipeline: pure functions of arrays, settings and models."""
