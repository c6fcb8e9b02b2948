"""What checks of recordings report."""

from __future__ import annotations

from dataclasses import dataclass

from viv1t.files import shown


@dataclass(frozen=True)
class Finding:
    """Something about a recording that a user should know.

    Attributes:
        severity: `error` where training or scores would fail or be wrong, `warning` where they may.
        mouse_id: whose recording.
        trials: trial numbers that it is about; empty for the recording as a whole.
        what: what was found, and what was expected.
        fix: what to do.
    """

    severity: str
    mouse_id: str
    trials: tuple[int, ...]
    what: str
    fix: str

    @property
    def line(self) -> str:
        """For a log, whose lines have a severity of their own."""
        return str(self).partition(": ")[2]

    def __str__(self) -> str:
        where = f"mouse {self.mouse_id}"
        if len(self.trials) == 1:
            where += f" trial {self.trials[0]}"
        elif self.trials:
            more = f" and {len(self.trials) - 5} more" if len(self.trials) > 5 else ""
            where += f" trials {', '.join(map(str, self.trials[:5]))}{more}"
        return shown(f"{self.severity}: {where}: {self.what} -> {self.fix}")
