"""An hour of a real supervisor under real faults: ``python -m tests.soak`` (docs/testing.md)."""
