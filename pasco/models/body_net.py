"""The documented import path of BodyNet."""

from __future__ import annotations

from networks.body_net import BodyNet

__all__ = ["BodyNet"]
