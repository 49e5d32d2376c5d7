"""The calibration itself."""
