"""Inputs of a run: questions, prompts, and tables written by other systems."""
