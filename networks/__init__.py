"""BodyNet and the way from a config to any MONAI network."""
