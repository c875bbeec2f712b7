"""Another user than root."""

from __future__ import annotations

import os


class Nobody:
    """As a user whom permissions bind; root reads everything."""

    def __enter__(self) -> None:
        self.user = os.geteuid()
        if self.user == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self.user)
