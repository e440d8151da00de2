# SPDX-License-Identifier: Apache-2.0
"""Settings as people write them, and what they are told of their mistakes."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podscope import settings
from podscope.errors import UsageError


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Where something goes."""

    url: str
    kinds: tuple[str, ...] = ()
    retry_after: settings.Duration = settings.Duration(1)


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much."""

    memory: settings.Size = settings.Size(16 << 20)
    share: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    strict: bool = False


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of all shapes."""

    interval: Annotated[settings.Duration, msgspec.Meta(description="how often")] = (
        settings.Duration(1)
    )
    name: str = ""
    limits: Limits = Limits()
    targets: tuple[Target, ...] = ()


def read(text: str) -> Example:
    """The settings of a document named x.yaml."""
    return settings.decoded(settings.from_yaml(text, "x.yaml"), Example)


def refused(text: str) -> str:
    """What is said of a document."""
    with pytest.raises(UsageError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_document_gives_typed_settings():
    # GIVEN / WHEN
    made = read(
        "interval: 1m30s\nlimits: {memory: 64MiB}\n"
        "targets:\n- url: http://a\n  retry-after: 200ms\n- {url: http://b, kinds: [http]}\n"
    )

    # THEN
    assert made.interval == 90
    assert made.limits == Limits(memory=settings.Size(64 << 20))
    assert made.targets[0] == Target(url="http://a", retry_after=settings.Duration(0.2))
    assert made.targets[1].kinds == ("http",)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_document_gives_what_is_so_without_it(text):
    assert read(text) == Example()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: a\nintervall: 1s\n",
            "x.yaml:2: unknown key 'intervall' (did you mean 'interval'?)",
        ),
        ("zzz: 1\n", "x.yaml:1: unknown key 'zzz'"),
        (
            "name: a\ninterval: soon\n",
            "x.yaml:2: interval: not a duration: 'soon'; write it as 200ms, 1s or 1m30s",
        ),
        (
            "interval: 5\n",
            "x.yaml:1: interval: not a duration: 5; write it as 200ms, 1s or 1m30s",
        ),
        ("name: 5\n", "x.yaml:1: name: it must be text, and not a whole number"),
        (
            "limits:\n  share: 200\n",
            "x.yaml:2: limits.share: it must be a whole number <= 100",
        ),
        (
            "limits:\n  strict: 1\n",
            "x.yaml:2: limits.strict: it must be true or false, and not a whole number",
        ),
        (
            "limits:\n  memory: lots\n",
            "x.yaml:2: limits.memory: not a size: 'lots'; write it as 64KiB, 16MiB or 1GB",
        ),
        ("limits: 3\n", "x.yaml:1: limits: it must be keys with values, and not a whole number"),
        ("targets: {}\n", "x.yaml:1: targets: it must be a list, and not keys with values"),
        ("targets:\n\n- kinds: []\n", "x.yaml:3: targets[0].url is missing"),
        (
            "targets:\n- url: http://a\n- url: http://b\n  ulr: c\n",
            "x.yaml:4: targets[1]: unknown key 'ulr'",
        ),
        (
            "targets:\n- url: a\n  kinds:\n  - http\n  - 7\n",
            "x.yaml:5: targets[0].kinds[1]: it must be text, and not a whole number",
        ),
        ("name: a\nlimits: {}\nname: b\n", "x.yaml:3: name is there already, on line 1"),
        ("limits:\n  1: b\n", "x.yaml:2: limits is not text"),
        ("- a\n", "x.yaml:1: it must be lines of the form 'key: value'"),
        ("just text\n", "x.yaml:1: it must be lines of the form 'key: value'"),
        ("name: !!python/object:os.system x\n", "x.yaml:1: could not determine a constructor"),
        ("name: a\n---\nname: b\n", "x.yaml:2: but found another document"),
        ("name: [\n", "x.yaml:2: expected the node content"),
        ("name: \x01\n", "x.yaml: "),
        ("name: &a [*a]\n", "x.yaml: it is nested too deep"),
        ("[" * 5000, "x.yaml: it is nested too deep"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text, said):
    assert refused(text).startswith(said)


def test_a_variable_or_flag_is_named_instead_of_a_line():
    # GIVEN
    known = {one.name: one for one in settings.settings_of(Example)}
    interval = known["interval"]

    # WHEN / THEN
    for place in (interval.variable, interval.flag):
        with pytest.raises(UsageError, match=f"^{place}: not a duration: 'x'; write"):
            settings.decoded(interval.layer("x", place), Example)
    assert (interval.variable, interval.flag) == ("PODSCOPE_INTERVAL", "--interval")
    assert known["limits.memory"].variable == "PODSCOPE_LIMITS_MEMORY"
    assert known["limits.memory"].flag == "--limits-memory"


def test_variables_become_numbers_and_truths_only_where_these_are_wanted():
    # GIVEN
    known = {one.name: one for one in settings.settings_of(Example)}
    layer = settings.Layer()

    # WHEN
    for name, text in {"name": "17", "limits.share": "17", "limits.strict": "true"}.items():
        layer = known[name].layer(text, name).over(layer)
    made = settings.decoded(layer, Example)

    # THEN
    assert made == Example(name="17", limits=Limits(share=17, strict=True))


def test_a_layer_over_another_keeps_what_it_does_not_say():
    # GIVEN
    below = settings.from_yaml("name: a\nlimits: {share: 7, strict: true}\n", "x.yaml")
    above = settings.from_yaml("limits: {share: 9}\n", "y.yaml")

    # WHEN
    made = settings.decoded(above.over(below), Example)

    # THEN
    assert made == Example(name="a", limits=Limits(share=9, strict=True))


@pytest.mark.parametrize("size", ["1", "1B", "64KiB", "3MB", "2Gi", "1T"])
def test_sizes_are_read_and_written(size):
    # GIVEN / WHEN
    read = settings.Size.read(size)

    # THEN
    assert settings.Size.read(str(read)) == read


@given(st.integers(1, 10**12))
def test_a_size_written_and_read_is_the_same(number):
    assert settings.Size.read(str(settings.Size(number))) == number


@given(st.integers(1, 10**9))
def test_a_duration_written_and_read_is_the_same(milliseconds):
    # GIVEN
    duration = settings.Duration(milliseconds / 1000)

    # WHEN / THEN
    assert settings.Duration.read(str(duration)) == pytest.approx(duration, rel=1e-5)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(
        ["interval", "name", "limits", "memory", "targets", "url", "kinds"]), inner),
    max_leaves=12,
)  # fmt: skip


def taken_or_refused(text: str) -> bool:
    """Whether the document gives settings, or one line with the file's name."""
    try:
        return isinstance(read(text), Example)
    except UsageError as error:
        return str(error).startswith("x.yaml:") and "\n" not in str(error)


@given(_VALUES)
def test_any_value_is_taken_or_refused_with_its_file(value):
    assert taken_or_refused(yaml.safe_dump(value))


@given(st.text())
def test_any_text_is_taken_or_refused_with_its_file(text):
    assert taken_or_refused(text)
