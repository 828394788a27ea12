"""The settings of `export`."""

from __future__ import annotations

from typing import Literal

Format = Literal["auto", "bert", "mpnet", "own"]
"""What `export --format` takes."""
