"""Losses computed slab by slab from features and a linear head."""
