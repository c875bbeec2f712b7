"""BodyNet and the way from a config to any MONAI network."""

BODY_NET = "networks.body_net.BodyNet"
"""BodyNet's class path."""
