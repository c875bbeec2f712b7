"""Scores of predictions against labels, over many cases."""
