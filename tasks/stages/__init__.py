"""The stages, in the order of the pipeline: pure functions of arrays, settings and models."""
