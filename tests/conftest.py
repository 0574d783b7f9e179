"""What holds for all tests: properties are tried on the same examples every time; what fails was broken by a change.

Long runs (`-m slow`, `benchmarks/properties.py`) draw others.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
