"""Trainings of the student on its signals, and what they say of the forecast."""
