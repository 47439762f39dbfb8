"""Scores with their rules, and what validation chooses."""
