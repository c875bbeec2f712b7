"""Documented import paths; the code lives in networks."""
