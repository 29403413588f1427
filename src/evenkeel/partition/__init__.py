"""What a model is made of: its components, found by structure and by a table of names."""

from evenkeel.partition._component import Component, Piece, matches
from evenkeel.partition._components import Components
from evenkeel.partition._current import CurrentComponents
from evenkeel.partition._discover import components
from evenkeel.partition._model_blocks import ModelBlock, blocks
from evenkeel.partition._regroup import By, regroup
from evenkeel.partition._roles import ROLES
from evenkeel.partition._span import Span
from evenkeel.partition._table import Roles, Rules

__all__ = [
    "ROLES",
    "By",
    "Component",
    "Components",
    "CurrentComponents",
    "ModelBlock",
    "Piece",
    "Roles",
    "Rules",
    "Span",
    "blocks",
    "components",
    "matches",
    "regroup",
]
