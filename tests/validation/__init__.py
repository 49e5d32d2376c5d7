"""Trainings of the student, and what they say of forecasts."""
