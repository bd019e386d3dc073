"""The checker itself: each rule is shown a history that breaks it, and none finds fault with a right one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.faults.footprint import Footprint
from tests.faults.history import (
    History,
    Kind,
    Record,
    Request,
    Violation,
    judge,
    judge_record,
    late,
    leaks,
    recovery,
    unanswered,
    write,
)
from tests.faults.right_service import RightService, Step

FIRST, SECOND, THIRD = 1, 2, 3  # passwords
MINE, NEXT, OTHER = 11, 12, 13  # tokens


def request(number: int, kind: Kind, status: int | None, sent: float = 0.0, **more: Any) -> Request:
    """A request of ada's that took a tenth of a second, the ``number``-th second of the history."""
    sent = sent or float(number)
    return Request(number, kind, "ada", sent, more.pop("ended", sent + 0.1), status, **more)


def signed_up() -> list[Request]:
    """Ada has an account and a session."""
    return [
        request(1, "register", 201, new_password=FIRST),
        request(2, "login", 200, password=FIRST, learned=MINE),
    ]


def looked_again(token_status: int = 200, password: int = FIRST) -> list[Request]:
    """When all is over."""
    return [
        request(100, "check", token_status, token=MINE, final=True),
        request(101, "login", 200, password=password, final=True),
    ]


def rules(found: list[Violation]) -> list[tuple[str, int]]:
    return [(v.rule, v.request.id if v.request else 0) for v in found]


def test_a_right_history_breaks_no_rule() -> None:
    history = [
        *signed_up(),
        request(3, "check", 200, token=MINE),
        request(4, "login", 401),
        request(5, "logout", 200, token=MINE),
        request(6, "check", 401, token=MINE),
        *looked_again(401),
    ]
    assert judge(history) == []


# ---------------------------------------------------------------------------------------------------------- S1


@pytest.mark.parametrize(
    "ending",
    [
        request(5, "logout", 200, token=MINE),
        request(5, "change", 200, token=OTHER, password=FIRST, new_password=SECOND),
        request(5, "end_all", 200, token=OTHER),
        request(5, "sign_out", 200, token=99),
    ],
    ids=lambda r: r.kind,
)
def test_s1_a_token_that_works_after_its_acknowledged_end_is_reported(ending: Request) -> None:
    after = request(6, "check", 200, token=MINE)
    password = ending.new_password or FIRST
    assert rules(judge([*signed_up(), ending, after, *looked_again(401, password)])) == [("S1", 6)]
    # Sent before the end was acknowledged, it may have been quicker.
    racing = replace(after, sent=5.05)
    assert judge([*signed_up(), ending, racing, *looked_again(401, password)]) == []


def test_s1_a_leased_verifier_may_be_out_of_date_by_its_lease_and_no_longer() -> None:
    ending = request(5, "logout", 200, token=MINE)
    within = request(6, "check", 200, token=MINE, stale=1.0)
    assert judge([*signed_up(), ending, within, *looked_again(401)]) == []
    assert rules(judge([*signed_up(), ending, replace(within, sent=6.2), *looked_again(401)])) == [("S1", 6)]


def test_s1_a_change_that_takes_effect_after_the_acknowledged_end_is_reported_however_early_it_began() -> None:
    ending = request(5, "sign_out", 200, token=99)
    held = request(6, "profile", 200, sent=4.0, ended=9.0, token=MINE, whole=8.0)
    assert rules(judge([*signed_up(), ending, held, *looked_again(401)])) == [("S1", 6)]
    assert judge([*signed_up(), ending, replace(held, status=401), *looked_again(401)]) == []
    assert judge([*signed_up(), ending, replace(held, whole=5.05), *looked_again(401)]) == []


def test_s1_a_session_opened_with_a_password_that_was_just_being_changed_is_reported() -> None:
    login = request(3, "login", 200, sent=4.9, ended=5.2, password=FIRST, learned=NEXT)
    change = request(5, "change", 200, token=MINE, password=FIRST, new_password=SECOND, learned=OTHER)
    ghost = request(6, "check", 200, token=NEXT)
    final = [request(90 + n, "check", 401, token=token, final=True) for n, token in enumerate([MINE, NEXT])]
    final += [
        request(98, "check", 200, token=OTHER, final=True),
        request(99, "login", 200, password=SECOND, final=True),
    ]
    assert judge([*signed_up(), login, change, *final]) == []
    assert rules(judge([*signed_up(), login, change, ghost, *final])) == [("S1", 6)]


def test_s1_a_session_opened_while_all_were_ended_may_be_either() -> None:
    login = request(3, "login", 200, sent=4.9, ended=5.2, password=FIRST, learned=NEXT)
    end_all = request(5, "end_all", 200, token=MINE)
    for status in (200, 401):
        final = [*looked_again(401), request(99, "check", status, token=NEXT, final=True)]
        assert judge([*signed_up(), login, end_all, *final]) == []


# ---------------------------------------------------------------------------------------------------------- S2


def test_s2_an_acknowledged_login_that_is_lost_is_reported() -> None:
    assert rules(judge([*signed_up(), *looked_again(401)])) == [("S2", 100)]


def test_s2_an_acknowledged_logout_that_is_lost_is_reported() -> None:
    assert rules(judge([*signed_up(), request(5, "logout", 200, token=MINE), *looked_again(200)])) == [("S2", 100)]


def test_s2_an_acknowledged_change_that_is_lost_is_reported() -> None:
    change = request(5, "change", 200, token=MINE, password=FIRST, new_password=SECOND)
    old = request(6, "login", 200, password=FIRST)
    final = [*looked_again(401, SECOND)]
    assert rules(judge([*signed_up(), change, old, *final])) == [("S2", 6)]
    refused = replace(final[1], status=401)
    assert rules(judge([*signed_up(), change, final[0], refused])) == [("S2", 101)]


def test_s2_a_history_in_which_nobody_looked_again_is_reported() -> None:
    found = judge(signed_up())
    assert [v.rule for v in found] == ["S2", "S2"]
    assert rules(judge([*signed_up(), *looked_again(503)])) == [("S2", 100)]


def test_s2_an_end_without_an_answer_may_come_to_pass_or_not() -> None:
    for status in (None, 503):
        kinds: list[Kind] = ["logout", "end_all", "sign_out"]
        for kind in kinds:
            ending = request(5, kind, status, token=MINE if kind == "logout" else OTHER)
            assert judge([*signed_up(), ending, *looked_again(200)]) == []
            assert judge([*signed_up(), ending, *looked_again(401)]) == []


# ---------------------------------------------------------------------------------------------------------- S3


def test_s3_a_valid_token_that_is_refused_is_reported() -> None:
    refused = request(6, "check", 401, token=MINE)
    assert rules(judge([*signed_up(), refused, *looked_again()])) == [("S3", 6)]
    # What was itself refused ended nothing, and neither did what came later.
    no_end = request(5, "sign_out", 401, token=OTHER)
    later = request(7, "logout", 503, token=MINE)
    assert rules(judge([*signed_up(), no_end, refused, later, *looked_again()])) == [("S3", 6)]
    in_flight = replace(later, sent=6.05)
    assert judge([*signed_up(), no_end, refused, in_flight, *looked_again()]) == []


def test_s3_a_token_born_after_all_were_ended_is_not_ended_by_it() -> None:
    end_all = request(3, "end_all", 200, token=MINE)
    login = request(4, "login", 200, password=FIRST, learned=NEXT)
    refused = request(6, "check", 401, token=NEXT)
    final = [*looked_again(401), request(99, "check", 200, token=NEXT, final=True)]
    assert rules(judge([*signed_up(), end_all, login, refused, *final])) == [("S3", 6)]


def test_s3_the_right_password_that_is_refused_is_reported() -> None:
    refused = request(6, "login", 401, password=FIRST)
    assert rules(judge([*signed_up(), refused, *looked_again()])) == [("S3", 6)]
    # While a change is unanswered, nobody can say which one is right.
    unknown = request(5, "change", 503, token=OTHER, password=FIRST, new_password=SECOND)
    assert judge([*signed_up(), unknown, refused, *looked_again()]) == []
    change = request(6, "change", 403, token=MINE, password=FIRST, new_password=SECOND)
    assert rules(judge([*signed_up(), change, *looked_again()])) == [("S3", 6)]


def test_s3_a_wrong_password_that_is_accepted_is_reported() -> None:
    history = [*signed_up(), request(6, "login", 200), *looked_again()]
    assert rules(judge(history)) == [("S3", 6)]


@pytest.mark.parametrize("status", [500, 502, 404, 302, 429, 403])
def test_s3_an_answer_that_is_not_this_services_is_reported(status: int) -> None:
    history = [*signed_up(), request(6, "check", status, token=MINE), *looked_again()]
    assert rules(judge(history)) == [("S3", 6)]


# ---------------------------------------------------------------------------------------------------------- S4

EVENTS = [("user_created", 1), ("authn_login_success", 2), ("authn_login_fail", 3)]
DECIDED = [*signed_up(), request(3, "login", 401), request(4, "login", 503, password=FIRST)]


def test_s4_one_event_for_each_decision_is_right_and_one_more_for_what_nobody_knows() -> None:
    assert judge_record(DECIDED, Record(EVENTS, [2])) == []
    assert judge_record(DECIDED, Record([*EVENTS, ("authn_login_success", 4)], [2, 4])) == []


@pytest.mark.parametrize(
    ("events", "sessions", "about"),
    [
        (EVENTS[:1] + EVENTS[2:], [], 2),
        (EVENTS[:2], [2], 3),
        ([*EVENTS, ("authn_login_success", 2)], [2], 2),
        ([*EVENTS, ("authn_login_fail", 2)], [2], 2),
        ([*EVENTS, ("authn_login_success", 4), ("authn_login_fail", 4)], [2, 4], 4),
        ([*EVENTS, ("authn_login_success", 77)], [2], 0),
        (EVENTS, [2, 4], 0),
    ],
    ids=["none", "none of a failure", "two", "both", "both, unknown", "of nothing", "a session without one"],
)
def test_s4_too_few_and_too_many_events_are_reported(
    events: list[tuple[str, int]], sessions: list[int], about: int
) -> None:
    assert rules(judge_record(DECIDED, Record(events, sessions))) == [("S4", about)]


def test_s4_a_secret_in_a_log_is_reported_and_not_repeated() -> None:
    found = leaks("a line\nwith a hidden treasure in it\n", ["nothing", "hidden treasure"])
    assert [v.rule for v in found] == ["S4"]
    assert "treasure" not in str(found)


# --------------------------------------------------------------------------------------------- S5 and the bounds


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({}, False),
        ({"memory": 73.0}, False),
        ({"memory": 77.0}, True),
        ({"descriptors": 22}, True),
        ({"threads": 100}, True),
        ({"connections": 11}, True),
    ],
)
def test_s5_what_a_fault_leaves_behind_is_reported(change: dict[str, Any], *, reported: bool) -> None:
    before = Footprint(memory=70.0, descriptors=20, threads=3, connections=10)
    assert bool(before.grown(replace(before, **change), pool_size=10)) is reported


def test_late_and_missing_answers_are_reported_and_recovery_is_measured() -> None:
    good = request(1, "check", 200)
    slow = request(2, "check", 503, ended=4.5)
    lost = request(6, "check", None)
    assert rules(late([good, slow, lost], 2.0)) == [("bound", 2)]
    assert rules(unanswered([good, slow, lost])) == [("bound", 6)]
    assert recovery([good, slow, lost], since=3.0) == pytest.approx(3.1)
    assert recovery([good, slow, lost], since=7.0) == 0.0


def test_a_history_can_be_written_down(tmp_path: Path) -> None:
    write(signed_up(), tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"kind": "register"' in lines[0]


# ---------------------------------------------------------------------------------------------------- in general

KINDS: list[Kind] = ["login", "check", "logout", "change", "end_all", "sign_out"]
STEPS = st.lists(
    st.builds(
        Step,
        kind=st.sampled_from(KINDS),
        sent=st.floats(2.0, 20.0),
        takes=st.floats(0.01, 5.0),
        part=st.floats(0.0, 1.0),
        which=st.integers(0, 8),
        fate=st.sampled_from(["answered", "answered", "answered", "late", "never"]),
        late=st.floats(0.0, 50.0),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_no_history_of_a_service_that_is_right_breaks_a_rule(steps: list[Step]) -> None:
    assert judge(RightService().serve(steps)) == []


@settings(max_examples=300, deadline=None)
@given(STEPS, st.data())
def test_a_final_answer_turned_round_is_reported_unless_it_could_have_been_either(
    steps: list[Step], data: st.DataObject
) -> None:
    history = RightService().serve([replace(step, fate="answered") for step in steps])
    turned = data.draw(st.sampled_from([r for r in history if r.final and r.kind == "check"]))
    assert turned.token is not None
    born = History(history).tokens[turned.token].born
    # A session that was opened while all were being ended is one of them or is not.
    assume(
        not any(r.kind in {"end_all", "sign_out"} and r.sent < born.ended and born.sent < r.ended for r in history)
    )
    wrong = replace(turned, status=401 if turned.status == 200 else 200)
    assert ("S2", turned.id) in rules(judge([wrong if r is turned else r for r in history]))
