"""MONAI dictionary transforms and the chains built from them. Plain arguments, no config."""
