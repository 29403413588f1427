from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from evenkeel import Components
from evenkeel.errors import MethodError
from evenkeel.methods import Batch, Moment, Session, Sessions, Step

MOMENT = Moment(step=3)
STEP = Step(moment=MOMENT, total=9, parts=Components([]), optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0))
LOSS = torch.tensor(1.0)
BATCH = Batch(inputs={}, outputs=None, loss=LOSS, problem="unknown", moment=MOMENT, compute=lambda: (LOSS, None))


class Tells(Session):
    """Tells a list what it is asked, and has a term and a state of its own."""

    def __init__(self, name: str, told: list[str], term: float | None = None, *, fails: bool = False) -> None:
        self.name, self.told, self.term, self.fails = name, told, term, fails
        self.state: Mapping[str, Any] = {"counted": 0}

    def _tell(self, what: str, given: object = None) -> None:
        assert given in (None, MOMENT, STEP, BATCH)
        self.told.append(f"{self.name} {what}")

    def start(self) -> None:
        self._tell("starts")

    def before_forward(self, moment: Moment) -> None:
        self._tell("before forward", moment)

    def loss_term(self, batch: Batch) -> Tensor | None:
        assert batch is BATCH
        return None if self.term is None else torch.tensor(self.term)

    def ascend(self, step: Step) -> None:
        self._tell("ascends")

    def descend(self) -> None:
        self._tell("descends")

    def before_step(self, step: Step) -> None:
        assert step is STEP
        self._tell("before step")

    def after_step(self, step: Step) -> None:
        assert step is STEP
        self._tell("after step")

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._tell("evaluates")
        try:
            yield
        finally:
            self._tell("has evaluated")

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return self._evaluating()

    def finish(self) -> None:
        self._tell("finishes")

    def close(self) -> None:
        self._tell("closes")
        if self.fails:
            raise RuntimeError(f"{self.name} cannot close")

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state


def both(told: list[str], **more: Any) -> tuple[Sessions, Tells, Tells]:
    one, other = Tells("one", told), Tells("other", told, **more)
    return Sessions({"one": one, "other": other}), one, other


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda sessions: sessions.start(), "starts"),
        (lambda sessions: sessions.before_forward(MOMENT), "before forward"),
        (lambda sessions: sessions.ascend(STEP), "ascends"),
        (lambda sessions: sessions.descend(), "descends"),
        (lambda sessions: sessions.before_step(STEP), "before step"),
        (lambda sessions: sessions.after_step(STEP), "after step"),
        (lambda sessions: sessions.finish(), "finishes"),
    ],
)
def test_every_session_is_told_in_order(call: Any, what: str) -> None:
    told: list[str] = []
    assert call(both(told)[0]) is None
    assert told == [f"one {what}", f"other {what}"]


def test_no_hook_is_forgotten() -> None:
    public = {name for name, member in vars(Session).items() if callable(member) and not name.startswith("_")}
    assert public <= vars(Sessions).keys()


@pytest.mark.parametrize(
    ("terms", "total"), [([], None), ([None, None], None), ([None, 2.0], 2.0), ([0.5, None, 2.0, 4.0], 6.5)]
)
def test_terms_of_the_loss_add_up(terms: list[float | None], total: float | None) -> None:
    found = Sessions({str(place): Tells("", [], term) for place, term in enumerate(terms)}).loss_term(BATCH)
    assert (None if found is None else found.item()) == total


def test_evaluation_is_within_all_contexts() -> None:
    told: list[str] = []
    sessions, *_ = both(told)

    def evaluate() -> None:
        with sessions.evaluating():
            told.append("now")
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert told == ["one evaluates", "other evaluates", "now", "other has evaluated", "one has evaluated"]


def test_all_are_closed_the_last_one_first_whatever_one_of_them_does() -> None:
    told: list[str] = []
    sessions, _, _ = both(told, fails=True)
    with pytest.raises(RuntimeError, match="other cannot close"):
        sessions.close()
    assert told == ["other closes", "one closes"]


def test_states_go_by_name_of_the_method() -> None:
    sessions, one, other = both([])
    assert sessions.state_dict() == {"one": {"counted": 0}, "other": {"counted": 0}}
    sessions.load_state_dict({"other": {"counted": 2}, "one": {"counted": 1}})
    assert (one.state, other.state) == ({"counted": 1}, {"counted": 2})


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, r"written with the methods \(none\), and this training has one, other"),
        ({"one": {}}, "written with the methods one, and this training has one, other"),
        ({"one": {}, "other": {}, "third": {}}, "one, other, third, and this training has one, other"),
    ],
)
def test_a_checkpoint_of_other_methods_is_refused(state: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        both([])[0].load_state_dict(state)


def test_a_session_by_itself_does_nothing() -> None:
    session = Session()
    session.start()
    session.before_forward(MOMENT)
    assert session.loss_term(BATCH) is None
    session.before_step(STEP)
    session.after_step(STEP)
    with session.evaluating():
        pass
    session.finish()
    session.close()
    session.close()
    assert session.state_dict() == {}
