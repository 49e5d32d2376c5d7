"""Tests of what all rooms share: settings, stages, texts."""
