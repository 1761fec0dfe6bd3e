"""What tests of agents need (``AgentRig``), and the simulated world in which the supervisor itself is tested."""

from supervisord_py.testing.agents import AgentRig, RecordingLink

__all__ = ["AgentRig", "RecordingLink"]
