"""Classifies pictures with a trained network."""
