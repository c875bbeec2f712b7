"""Overlap and surface metrics of label maps, and statistics over cases."""
