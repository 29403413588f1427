"""What all thresholds have in common that remember something of every component."""

from __future__ import annotations

from typing import Any

from evenkeel.clipping.thresholds._records import Records
from evenkeel.clipping.thresholds._threshold import Threshold
from evenkeel.partition import Components

__all__ = ["Running"]


class Running(Threshold):
    """A threshold whose state is a table with one row for each component, ``_records``."""

    _records: Records

    def bind(self, parts: Components) -> None:
        """Learn which components the norms of the next steps belong to.

        Args:
            parts: the components, ``C`` of them.
        """
        self._records.bind(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of all components, by name."""
        return self._records.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one of the same class and configuration was.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no state of this class, or of another width of its tables.
        """
        self._records.load_state_dict(state)
