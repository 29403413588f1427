"""LAMB: updates are as long as a share of the weights that they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch.optim import Optimizer

from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._in_place_of_adamw import groups_of
from evenkeel.methods._options import check_flag, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.optim import Lamb
from evenkeel.partition import Components, regroup

__all__ = ["LayerAdaptiveMoments"]

_SETTINGS = ("lr", "betas", "eps", "weight_decay", "maximize", "foreach")


@final
@dataclass(frozen=True, kw_only=True)
class LayerAdaptiveMoments(Method):
    r"""Fine-tune with Adam whose step in each tensor is a share of that tensor's norm.

    With Adam's direction, weight decay in it, :math:`u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w`,

    .. math::

        w \leftarrow w - \eta \, r \, u, \qquad r = \min\left(\frac{\lVert w \rVert}{\lVert u \rVert}, \mu\right)

    see :class:`evenkeel.optim.Lamb`. Rate, betas, epsilon and weight decay are the training's own. The rate means
    something else than AdamW's, the share of its norm by which a tensor moves in a step, and wants to be larger: the
    published code names 3e-4 to 5e-4, with a batch of 64, where it names 3e-5 to 5e-5 for AdamW.

    Paper and published code differ. Bias correction is the paper's. As in the code, :math:`\phi` is the identity, and
    biases and norms are left with Adam's step, :math:`r = 1`; it finds these by their names, and here they are the
    tensors of fewer than two dimensions. A fused projection is one tensor. The code also clips the whole gradient at
    1.0, which is done here unless another method of a mix decides it: ``lamb+component-clip``.

    Source: You et al. 2020, arXiv 1904.00962, algorithm 2; ``lamb_optimizer.py`` and ``optimization.py`` of
        google-research/albert. The bound :math:`\mu` is LAMBC's: Fong et al. 2020, arXiv 2011.13584.

    Attributes:
        max_ratio: :math:`\mu`, the most that a step is multiplied by; positive, or None for no bound as in the paper. 1
            is the usual bound of LAMBC.
        vectors: whether biases and norms are rescaled too, as in the paper's algorithm, which excepts nothing.
        max_norm: the norm that the whole gradient may have; positive, ``inf`` clips nothing.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "lamb"
    summary: ClassVar[str] = "Adam whose step in each tensor is a share of that tensor's norm, global clipping at 1.0"
    source: ClassVar[str] = "You et al. 2020, arXiv 1904.00962; Fong et al. 2020, arXiv 2011.13584"
    owns: ClassVar[frozenset[Owned]] = frozenset({"update"})
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    max_ratio: float | None = None
    vectors: bool = False
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "max_ratio", self.max_ratio, above=0, optional=True, advice="1 is LAMBC's usual bound")
        check_flag(name, "vectors", self.vectors, advice="true rescales the steps of biases and norms too")
        check_number(name, "max_norm", self.max_norm, above=0, infinite=True, advice="to clip nothing, give inf")

    def begin(self, setting: Setting) -> Session:
        """Return a session that does nothing: to have one says that the method acts on whole parameters."""
        return Session()

    def clipping(self, parts: Components) -> Clipping:
        """Clip the whole gradient to ``max_norm``."""
        return Clipping(parts=regroup(parts, "global"), max_norm=self.max_norm)

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Make a Lamb of the same groups and settings.

        Args:
            plain: an AdamW without state.

        Returns:
            The optimizer.

        Raises:
            MethodError: if it is another optimizer, or has ``amsgrad``.
        """
        groups = groups_of(self.name, plain, _SETTINGS)
        settings = {name: plain.defaults[name] for name in _SETTINGS}
        return Lamb(groups, **settings, max_ratio=self.max_ratio, vectors=self.vectors)
