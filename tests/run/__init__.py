"""Tests of what runs the stages."""
