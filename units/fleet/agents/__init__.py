"""Agents that work together: see README.md beside this folder."""
