"""The state table and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnat.pap.questions import Holding
from dnat.pap.states import TRANSITIONS, IllegalTransition, State, Trigger, document, next_state

DOCS = Path(__file__).parents[3] / "docs"


def test_the_diagram_in_the_docs_is_that_of_the_table() -> None:
    assert (DOCS / "pap-states.md").read_text() == document()


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", Trigger)
def test_what_the_table_does_not_list_raises_and_changes_nothing(state: State, trigger: Trigger) -> None:
    holding = Holding(state=state)
    if trigger in TRANSITIONS[state]:
        holding.trigger(trigger)
        assert holding.state is TRANSITIONS[state][trigger] is next_state(state, trigger)
    else:
        with pytest.raises(IllegalTransition, match=state.value):
            holding.trigger(trigger)
        assert holding.state is state


def test_every_state_is_reached_and_every_life_ends() -> None:
    reached = {State.WANTED}
    for _ in State:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(State)
    ends = {State.ENDED}
    for _ in State:
        ends |= {state for state, triggers in TRANSITIONS.items() if ends & set(triggers.values())}
    assert ends == set(State)
