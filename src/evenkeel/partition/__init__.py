"""What a model is made of: its components, found by structure and by a table of names."""

from evenkeel.partition._component import Component, Components, matches
from evenkeel.partition._current import CurrentComponents
from evenkeel.partition._discover import components
from evenkeel.partition._regroup import By, regroup
from evenkeel.partition._roles import ROLES

__all__ = ["ROLES", "By", "Component", "Components", "CurrentComponents", "components", "matches", "regroup"]
