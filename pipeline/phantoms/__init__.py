"""Computed bodies: the sample data set and the proof of geometry."""
