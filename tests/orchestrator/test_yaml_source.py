from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.yaml_source import MAX_BYTES, MAX_DEPTH, dump_yaml, parse_value, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e9", 3e9),  # a string by YAML 1.1
        ("010", 10),  # 8 by YAML 1.1
        ("1:30", "1:30"),  # 90 by YAML 1.1
        ("no", "no"),  # false by YAML 1.1
        ("2026-01-02", "2026-01-02"),  # a date by YAML 1.1
        ("1_000", "1_000"),
        (".5", 0.5),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("", None),
        (".inf", ".inf"),
        ("'3'", "3"),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_follow_the_1_2_core_rules(text: str, value: object) -> None:
    found = parse_value(text, "--set")
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_list_entry_knows_its_line() -> None:
    source = parse_yaml("a: 1\nb:\n  c: 2\n  d:\n  - x\n  - y: 3\n", "f")
    assert source.lines == {
        (): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4,
        ("b", "d", 0): 5, ("b", "d", 1): 6, ("b", "d", 1, "y"): 6,
    }  # fmt: skip


def test_a_doubled_key_is_a_problem_on_its_own_line_and_the_first_one_counts() -> None:
    source = parse_yaml("a: 1\nb:\n  c: 2\n  c: 3\n", "f")
    assert source.tree == {"a": 1, "b": {"c": 2}}
    (problem,) = source.problems
    assert (problem.key, problem.line, problem.suggestion) == ("b.c", 4, "first on line 3")


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [echo]", 2, "tag"),
        ("a: &x 1", 1, "anchor"),
        ("a: *x", 1, "alias"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("a: 1\n? [b, c]\n: 2", 2, "as a key"),
        ("a: 1\nb: [1, 2", 2, "expected"),
        ("a: 1\n\tb: 2", 2, "cannot start any token"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 1, "levels of nesting"),
        ("a: 1\nb: " + "9" * 50, 2, "absurd length"),
        ("a: 1e999", 1, "1e999"),
        ('a: "\\ud800"', 1, "no text"),
        ("a: 1\nb: \x07", 2, "control character"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, line: int, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    (problem,) = caught.value.problems
    assert problem.line == line
    assert found in problem.found


def test_deep_nesting_is_refused_without_exhausting_the_stack() -> None:
    with pytest.raises(ConfigError):
        parse_yaml("[" * 100_000, "f")


def test_size_limit_is_below_what_parsing_can_bear() -> None:
    assert MAX_BYTES <= 1 << 20


_TEXTS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff\ufffe\uffff")
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(_TEXTS),
)
_KEYS = st.text("abc_.0123e9", min_size=1, max_size=5)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), _TREES, max_size=4))
def test_what_is_dumped_reads_back_the_same(tree: dict[str, object]) -> None:
    assert json.dumps(parse_yaml(dump_yaml(tree), "f").tree) == json.dumps(tree)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.text("{}[]:,-&*!?|>'\"%@` \n\tab01", max_size=40))
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    try:
        parse_yaml(text, "f")
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message
