"""Objectives: one file a method."""
