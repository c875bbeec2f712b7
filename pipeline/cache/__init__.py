"""Preprocessed cases kept on disk."""
