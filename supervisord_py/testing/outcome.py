"""How a run of the simulated world ended, and what a person needs to look into it."""

from msgspec import Struct

from supervisord_py.testing.profile import Profile


class Outcome(Struct, frozen=True):
    """How a run ended: ``violation`` None is a pass; ``digest`` covers every event and effect, if asked for."""

    seed: int
    profile: Profile
    steps: int
    deaths: int
    simulated_ns: int
    digest: str
    violation: str | None
    checker: str | None
    tail: tuple[str, ...]

    def report(self) -> str:
        """What a person needs to begin: the seed, what was switched on, what broke, and what led there."""
        return "\n".join(
            [
                f"seed {self.seed}: {self.checker}: {self.violation}",
                f"  profile: {' '.join(self.profile.switched_on())}",
                *(f"  {line}" for line in self.tail),
                f"  again: python -m supervisord_py.testing.world --seed {self.seed} --verbose",
            ]
        )
