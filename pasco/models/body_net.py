"""The documented import path of BodyNet."""

from networks.body_net import BodyNet

__all__ = ["BodyNet"]
