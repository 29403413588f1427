"""Child-Tuning for a task: only the weights that matter most to it are updated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._named import parameters_of, placed
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["ChildTuningD"]


@final
@dataclass(frozen=True, kw_only=True)
class ChildTuningD(Method):
    r"""Update of the blocks only the weights with the most Fisher information on the task, chosen once before training.

    The information of a weight is estimated from the gradients :math:`g_b` of the batches of one epoch at the weights
    with which the training starts; of all entries of all blocks together the share :math:`p` with the most is kept, and
    the gradients of the others are set to 0 in every step, after clipping and before Adam's moments:

    .. math:: F = \frac{1}{B} \sum_{b=1}^{B} g_b^2, \qquad g \leftarrow g \odot [F \geq F_{(p)}]

    What is kept is not enlarged. Parameters outside of the blocks (embeddings, pooler, head) are always updated, and
    weight decay is not masked, both as in the published code, which goes by names with ``layer`` in them.

    Gradients are those of whole batches, over all ranks, as in the published code; the paper writes examples. That code
    also leaves dropout on and clips each parameter's gradient at 1 before squaring; here neither is done, so that the
    estimate is that of the model itself. Exactly ``round(p * n)`` of ``n`` entries are kept (at least one): of equals
    the first, where the published code keeps all.

    Costs one epoch of forward and backward passes before training. Sums of squares take as much memory as the blocks'
    weights in float32 on their device and, while the mask is chosen, as much again in the main memory; then the mask
    takes a byte for each entry, and an eighth of it in checkpoints.

    Source: Xu et al. 2021, arXiv 2109.05687, section 2.3 and algorithm 1 (Child-Tuning_D).

    Attributes:
        p: the share of the blocks' entries that is updated, above 0 and up to 1; the paper searches 0.1, 0.2 and 0.3.
            1 masks nothing, and looks at no gradient beforehand.

    Raises:
        MethodError: if ``p`` is no such number.
    """

    name: ClassVar[str] = "child-tuning-d"
    summary: ClassVar[str] = "of the blocks only the weights with the most Fisher information on the task are updated"
    source: ClassVar[str] = "Xu et al. 2021, arXiv 2109.05687"
    touches: ClassVar[frozenset[Touched]] = frozenset({"gradients"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "child-tuning-f": "each masks gradients, one for good and one anew in each step",
        "gradual-unfreezing": "which weights matter is found out when training begins, and most are still frozen then",
        "head-only": "it freezes the blocks, among whose weights is chosen",
    }

    p: float = 0.3

    def __post_init__(self) -> None:
        check_number(self.name, "p", self.p, above=0, most=1, advice="the paper searches 0.1, 0.2 and 0.3")

    def check(self, setting: Setting) -> None:
        """Refuse a model of whose blocks nothing is trained."""
        _of_blocks(setting)

    def begin(self, setting: Setting) -> Session:
        """Return the session that finds the mask when training starts."""
        return _ChildSession(self.p, setting)


def _of_blocks(setting: Setting) -> dict[str, Tensor]:
    found = parameters_of(part for part in setting.parts if part.layer is not None)
    if not found:
        raise MethodError(
            f"{ChildTuningD.name} chooses among the weights of a model's blocks, and none of them is trained; release "
            "them, or use full for this model"
        )
    return found


@final
class _ChildSession(Session):
    """Masks gradients by what the first look at the data said."""

    def __init__(self, share: float, setting: Setting) -> None:
        self._share, self._setting = share, setting
        self._parameters = _of_blocks(setting)
        self._masks: dict[str, Tensor] = {}

    def start(self) -> None:
        if self._share < 1:
            self._masks = _most(self._information(), self._share)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        for name, mask in self._masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in self._masks.items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._masks = {
            name: _unpacked(bits, self._parameters[name])
            for name, bits in placed(ChildTuningD.name, state["masks"], self._parameters).items()
        }

    def _information(self) -> dict[str, Tensor]:
        """Return the sums of squared gradients over one epoch; nothing but them is left of it."""
        sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in self._parameters.items()
            if parameter.requires_grad
        }
        if not sums:
            raise MethodError(
                f"{ChildTuningD.name} chooses among the weights of a model's blocks, and all of them are frozen when "
                "training begins; leave out what freezes them"
            )
        for loss in self._setting.losses():
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for name, total in sums.items():
                    gradient = self._parameters[name].grad
                    if gradient is not None:
                        total.addcmul_(gradient.float(), gradient.float())
            self._setting.model.zero_grad()
        return sums


def _unpacked(bits: Tensor, parameter: Tensor) -> Tensor:
    mask = np.unpackbits(bits.cpu().numpy(), count=parameter.numel()).astype(bool)
    return torch.from_numpy(mask).view(parameter.shape).to(parameter.device)


def _most(information: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mark the share of all entries that is greatest; of equals the first ones."""
    flat = np.concatenate([tensor.flatten().cpu().numpy() for tensor in information.values()])
    keep = max(1, round(share * flat.size))
    flat.partition(flat.size - keep)  # in place, without a copy or an index
    top = flat[flat.size - keep :]
    if not math.isfinite(top.max()):
        raise MethodError(
            f"{ChildTuningD.name} found gradients that are not finite before training, and cannot say which weights "
            "matter; train with bf16=True in place of fp16=True, or look for the example that breaks the loss"
        )
    least = float(top[0])
    room = keep - int(np.count_nonzero(top > least))
    masks = {}
    for name, tensor in information.items():
        equal = tensor == least
        chosen = equal & (equal.flatten().cumsum(0) <= room).view_as(equal)
        masks[name] = (tensor > least) | chosen
        room -= int(chosen.sum())
    return masks
