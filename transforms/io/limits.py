"""How large a volume may be; imports nothing, so that the settings can check it before torch is needed."""

from __future__ import annotations

MAX_VOXELS = 2**31
"""No scanner makes more (1290 voxels a side); a header that claims more is damaged or hostile."""
