"""A process supervisor for long-running agents and services on Linux."""

__version__ = "0.1.0"
