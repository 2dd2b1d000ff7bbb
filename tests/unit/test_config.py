"""Settings: who decides, what text means, and what the user is told."""

import itertools
import keyword
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl import config
from elasticdl.errors import UserError

TRAIN: Mapping[str, object] = {"model_def": "digits.Conv", "data": "train", "output": "out"}


def resolve(
    given: Mapping[str, object] = TRAIN,
    environ: Mapping[str, str] | None = None,
    kind: str = "train",
    **more: Any,
) -> config.Resolved:
    """Settings of a process whose home has no files, with its own variables only."""
    return config.resolve(
        kind, given, {"HOME": "/nowhere", **(environ or {})}, suffix=lambda: "abc123", **more
    )


# ---- who decides ------------------------------------------------------------------------------

LAYERS = ("flag", "environment", "zoo table", "zoo", "user table", "user")


@given(present=st.sets(st.sampled_from(LAYERS)), numbers=st.permutations(range(2, 8)))
@settings(deadline=None)
def test_the_first_of_flag_environment_zoo_and_user_decides(
    present: set[str], numbers: list[int]
) -> None:
    value = dict(zip(LAYERS, numbers, strict=True))

    def toml(top: str, table: str) -> str:
        lines = [f"batch-size = {value[top]}"] if top in present else []
        lines += ["[train]", f"batch_size = {value[table]}"] if table in present else []
        return "\n".join(lines)

    with tempfile.TemporaryDirectory() as directory:
        home, zoo = Path(directory, "home"), Path(directory, "zoo")
        (home / ".config" / "elasticdl").mkdir(parents=True)
        zoo.mkdir()
        user_file = home / ".config" / "elasticdl" / "config.toml"
        user_file.write_text(toml("user", "user table"))
        zoo_file = zoo / "elasticdl.toml"
        zoo_file.write_text(toml("zoo", "zoo table"))
        environ = {"HOME": str(home)}
        if "environment" in present:
            environ["ELASTICDL_BATCH_SIZE"] = str(value["environment"])
        given = {**TRAIN, "model_zoo": str(zoo)}
        if "flag" in present:
            given["batch_size"] = str(value["flag"])
        resolved = config.resolve("train", given, environ)

    sources = {
        "flag": "flag",
        "environment": "ELASTICDL_BATCH_SIZE",
        "zoo table": f"{zoo_file} [train]",
        "zoo": str(zoo_file),
        "user table": f"{user_file} [train]",
        "user": str(user_file),
    }
    decides = next((layer for layer in LAYERS if layer in present), None)
    expected = (
        config.Origin(value[decides], sources[decides])
        if decides is not None
        else config.Origin(64, "default")
    )
    assert resolved.origins["batch_size"] == expected
    assert resolved.config.batch_size == expected.value


def test_the_zoo_itself_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").write_text("epochs = 7")
    assert resolve(environ={"ELASTICDL_MODEL_ZOO": str(tmp_path)}).config.epochs == 7


def test_the_zoo_cannot_say_where_the_zoo_is(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").write_text('model_zoo = "elsewhere"')
    with pytest.raises(UserError, match="model_zoo: expected anywhere but in the zoo"):
        resolve({**TRAIN, "model_zoo": str(tmp_path)})


def test_evaluation_reads_the_zoo_in_the_trained_model(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "elasticdl.toml").write_text(
        "batch_size = 9\nepochs = 3\n[evaluate]\nstreams = 4\n[train]\nstreams = 5"
    )
    trained = resolve({"trained_model": str(tmp_path), "data": "test"}, kind="evaluate")
    assert (trained.config.batch_size, trained.config.streams) == (9, 4)
    assert "epochs" not in trained.origins


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"HOME": "/h"}, "/h/.local/state/elasticdl"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/state"}, "/state/elasticdl"),
        ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, "/h/.local/state/elasticdl"),
    ],
)
def test_what_runs_is_noted_where_xdg_has_states(environ: dict[str, str], directory: str) -> None:
    assert config.state_directory(environ) == directory


def test_user_configuration_follows_xdg(tmp_path: Path) -> None:
    (tmp_path / "elasticdl").mkdir()
    (tmp_path / "elasticdl" / "config.toml").write_text("num_workers = 2")
    assert resolve(environ={"XDG_CONFIG_HOME": str(tmp_path)}).config.num_workers == 2
    assert config.user_directory({"HOME": "/h", "XDG_CONFIG_HOME": "relative"}) == (
        "/h/.config/elasticdl"
    )


def test_a_flag_can_take_back_what_a_variable_sets() -> None:
    assert resolve({**TRAIN, "loss": ""}, {"ELASTICDL_LOSS": "mse"}).config.loss == ""


def test_an_empty_variable_counts_as_not_set() -> None:
    assert resolve(environ={"ELASTICDL_EPOCHS": ""}).origins["epochs"].source == "default"


def test_variables_of_other_commands_are_left_alone() -> None:
    given = {"trained_model": "out", "data": "test", "output": "predicted"}
    assert resolve(given, {"ELASTICDL_EPOCHS": "3"}, kind="predict").config.epochs == 1


def test_a_misspelled_variable_is_pointed_out() -> None:
    environ = {"ELASTICDL_BATCHSIZE": "3", "ELASTICDL_DEBUG": "1", "ELASTICDL_PORT": "tcp://"}
    assert resolve(environ=environ).notices == (
        "ELASTICDL_BATCHSIZE is set but is no setting; did you mean ELASTICDL_BATCH_SIZE?",
    )


def test_values_from_python_are_called_arguments() -> None:
    resolved = resolve({**TRAIN, "epochs": 3}, source="argument")
    assert resolved.origins["epochs"] == config.Origin(3, "argument")


# ---- what text means --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("batch_size", "128", 128),
        ("batch_size", np.int64(128), 128),
        ("reproducible", "true", True),
        ("reproducible", "Yes", True),
        ("reproducible", "0", False),
        ("reproducible", False, False),
        ("output", Path("a/b"), "a/b"),
        ("params", {"hidden_units": [10, 5]}, "hidden_units=[10, 5]"),
        ("grace_s", "2.5", 2.5),
        ("grace_s", 2, 2.0),
        ("grace_s", np.float32(0.5), 0.5),
        ("rebalance_gain", "0", 0.0),
        ("orphan_s", "1e3", 1000.0),
        ("standby_workers", "-1", -1),
        ("checkpoint_every", 500, "500"),
        ("checkpoint_every", "5min", "5min"),
        ("restart", "yes", True),
        ("from_checkpoint", Path("other/out"), "other/out"),
    ],
)
def test_text_and_python_values_become_the_settings_type(
    name: str, text: object, value: object
) -> None:
    got = getattr(resolve({**TRAIN, name: text}).config, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"batch_size": "many"}, "--batch_size: expected a whole number; got 'many'."),
        ({"batch_size": 1.5}, "--batch_size: expected a whole number; got 1.5."),
        ({"batch_size": True}, "--batch_size: expected a whole number; got True."),
        ({"batch_size": "0"}, "batch_size: expected at least 1; got 0."),
        ({"seed": "-1"}, "seed: expected 0 or more; got -1."),
        ({"seed": 1 << 63}, f"seed: expected at most {(1 << 63) - 1}; got {1 << 63}."),
        ({"reproducible": "perhaps"}, "--reproducible: expected true or false; got 'perhaps'."),
        ({"loss": 3}, "--loss: expected text; got 3."),
        ({"cluster": "moon"}, "cluster: expected local or kubernetes; got 'moon'."),
        ({"nan_loss": "cry"}, "nan_loss: expected stop or skip; got 'cry'."),
        ({"epohcs": "3"}, "--epohcs: expected the name of a setting; got 'epohcs'. Did you mean "),
        ({"trained_model": "m"}, "got one of elasticdl evaluate and predict alone."),
        ({"params": "a=1", "model_params": "a=2"}, "got both params and model_params."),
        ({"params": "a=f(1)"}, "params: expected name=literal, name=literal; got 'a=f(1)'."),
        ({"job_name": "My Job"}, "job_name: expected 1 to 63 small letters"),
        ({"job_name": "-a"}, "a letter or digit first and last; got '-a'."),
        ({"job_name": "a" * 64}, "job_name: expected 1 to 63"),
        ({"grace_s": "soon"}, "--grace_s: expected a number; got 'soon'."),
        ({"grace_s": True}, "--grace_s: expected a number; got True."),
        ({"grace_s": None, "orphan_s": [1]}, "--orphan_s: expected a number; got [1]."),
        ({"grace_s": 0}, "grace_s: expected seconds, more than 0; got 0.0."),
        ({"grace_s": "nan"}, "grace_s: expected seconds, more than 0; got nan."),
        ({"orphan_s": "inf"}, "orphan_s: expected seconds, more than 0; got inf."),
        ({"hang_s": -1}, "hang_s: expected seconds, 0 or more; got -1.0."),
        ({"orphan_s": -1.5}, "orphan_s: expected seconds, more than 0; got -1.5."),
        ({"rebalance_gain": 1}, "rebalance_gain: expected a share, 0 or more and less than 1; "),
        ({"rebalance_gain": "nan"}, "rebalance_gain: expected a share"),
        ({"standby_workers": -2}, "standby_workers: expected 0 or more, or -1 to leave it to "),
        ({"min_workers": 0}, "min_workers: expected at least 1; got 0."),
        (
            {"min_workers": 3, "num_workers": 2},
            "min_workers: expected at most num_workers, 2; got 3. Raise --num_workers or lower",
        ),
        ({"keep_checkpoints": 0}, "keep_checkpoints: expected at least 1; got 0."),
        ({"max_failures": 0}, "max_failures: expected at least 1; got 0."),
        ({"checkpoint_every": "often"}, "or 0 for none; got 'often'."),
        ({"checkpoint_every": True}, "--checkpoint_every: expected text; got True."),
        ({"num_workers": 17}, "expected at most one worker a stream, 16; got 17. Raise --streams"),
    ],
)
def test_a_wrong_value_says_what_was_expected(given: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve({**TRAIN, **given})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_names_the_variable_that_brought_the_value() -> None:
    with pytest.raises(UserError, match=r"^ELASTICDL_EPOCHS: expected a whole number; got 'x'"):
        resolve(environ={"ELASTICDL_EPOCHS": "x"})
    with pytest.raises(UserError, match=r"got 0\. It comes from ELASTICDL_EPOCHS\.$"):
        resolve(environ={"ELASTICDL_EPOCHS": "0"})


def test_model_params_is_an_alias_everywhere(tmp_path: Path) -> None:
    assert resolve({**TRAIN, "model_params": {"a": 1}}).config.params == "a=1"
    assert resolve(environ={"ELASTICDL_MODEL_PARAMS": "a=2"}).config.params == "a=2"
    (tmp_path / "elasticdl.toml").write_text("[train.model-params]\na = [1, {b = true}]")
    from_file = resolve({**TRAIN, "model_zoo": str(tmp_path)}).config
    assert from_file.model_params == {"a": [1, {"b": True}]}


def test_a_flag_replaces_params_of_lower_layers_whole() -> None:
    environ = {"ELASTICDL_PARAMS": "a=1, b=2"}
    assert resolve({**TRAIN, "model_params": "a=3"}, environ).config.model_params == {"a": 3}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("epochs = ", "expected TOML; got:"),
        ("epohcs = 3", "epohcs: expected the name of a setting; got 'epohcs'. Did you mean epochs"),
        ("[train]\nepochs = '3'", " [train]: epochs: expected a whole number; got '3'."),
        ("epochs = 3.0", "epochs: expected a whole number; got 3.0."),
        ("epochs = true", "epochs: expected a whole number; got True."),
        ("data = ['a']", "data: expected text; got ['a']."),
        ("train = 3", "train: expected a table, [train]; got 3."),
        ("[predict]\nepochs = 3", "expected a setting of elasticdl predict; got one of elasticdl"),
        ("[predcit]\nstreams = 3", "predcit: expected the name of a setting"),
        ("batch-size = 1\nbatch_size = 2", "batch_size: expected batch_size once; got it twice."),
        ("params = 'a=1'\nmodel_params = 'a=1'", "expected params once; got it twice."),
        ("grace_s = '2'", "grace_s: expected a number; got '2'."),
        ("grace_s = true", "grace_s: expected a number; got True."),
        ("orphan_s = 0", "expected seconds, more than 0; got 0.0. It comes from "),
        ("checkpoint_every = 1.5", "checkpoint_every: expected text; got 1.5."),
        ("[predict]\ncheckpoint_every = 5", "expected a setting of elasticdl predict; got one of"),
        ("params = {day = 2020-01-01}", "params: day: expected numbers, text, None"),
        ("[train]\nepochs = 0", "got 0. It comes from "),
        ("eval_data = '$NO_SUCH'", "elasticdl.toml: eval_data: expected defined variables"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "elasticdl.toml").write_text(content)
    with pytest.raises(UserError) as caught:
        resolve({**TRAIN, "model_zoo": str(tmp_path)})
    assert problem in str(caught.value)
    assert str(tmp_path / "elasticdl.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"elasticdl\.toml: expected TOML"):
        resolve({**TRAIN, "model_zoo": str(tmp_path)})


def test_a_directory_in_the_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").mkdir()
    with pytest.raises(UserError, match=r"elasticdl\.toml: expected a readable file"):
        resolve({**TRAIN, "model_zoo": str(tmp_path)})


def test_numbers_with_fractions_come_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").write_text(
        "grace_s = 2\n[train]\nrebalance_gain = 0.25\ncheckpoint_every = 100\n"
    )
    job = resolve({**TRAIN, "model_zoo": str(tmp_path)}, {"ELASTICDL_ORPHAN_S": "1.5"}).config
    assert (job.grace_s, job.rebalance_gain, job.orphan_s) == (2.0, 0.25, 1.5)
    assert type(job.grace_s) is float
    assert job.checkpoints == config.Every(steps=100)


# ---- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("500", config.Every(steps=500)),
        (" 7 ", config.Every(steps=7)),
        ("30s", config.Every(seconds=30)),
        ("0.5s", config.Every(seconds=0.5)),
        ("10 sec", config.Every(seconds=10)),
        ("5min", config.Every(seconds=300)),
        ("1.5m", config.Every(seconds=90)),
        ("1h", config.Every(seconds=3600)),
        ("0", config.Every()),
    ],
)
def test_checkpoints_are_due_after_steps_or_time(text: str, every: config.Every) -> None:
    assert config.parse_every(text) == every
    assert resolve({**TRAIN, "checkpoint_every": text}).config.checkpoints == every


@pytest.mark.parametrize(
    "text", ["", "s", "-5", "1.5", "0s", "0.0min", "5 days", "1h30min", "5S", "1e3", "½s", "²"]
)
def test_any_other_word_for_it_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse_every(text)
    assert str(caught.value) == (
        "checkpoint_every: expected steps such as 500, a time such as 30s, 5min or 1h, or 0 for "
        f"none; got {text!r}."
    )


@given(text=st.text())
def test_whatever_else_is_written_there_is_a_user_error(text: str) -> None:
    try:
        every = config.parse_every(text)
    except UserError:
        return
    assert min(every.steps, every.seconds) == 0 <= max(every.steps, every.seconds)


def test_only_trainings_have_checkpoints() -> None:
    kinds = {config.BY_NAME[name].kinds for name in ("checkpoint_every", "keep_checkpoints")}
    assert kinds == {config.TRAIN}


# ---- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/zoo", "/home/me/zoo"),
        ("$WORK/zoo", "/work/zoo"),
        ("${WORK}er/zoo", "/worker/zoo"),
        ("a/~/b", "a/~/b"),
        ("$TILDE/x", "~/x"),
        ("price-5$", "price-5$"),
        ("gs://bucket/$WORK/*.recordio", "gs://bucket//work/*.recordio"),
    ],
)
def test_home_and_variables_in_paths_are_expanded(text: str, path: str) -> None:
    environ = {"HOME": "/home/me", "WORK": "/work", "TILDE": "~"}
    given = {**TRAIN, "model_zoo": text, "data": text, "eval_data": text, "output": text}
    got = resolve(given, environ).config
    assert (got.model_zoo, got.data, got.eval_data, got.output) == (path,) * 4


def test_an_undefined_variable_in_a_path_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^data: .* got \$NO_SUCH, which the environment does not"):
        resolve({**TRAIN, "data": "$NO_SUCH/train"})


def test_variables_outside_paths_are_left_alone() -> None:
    assert resolve({**TRAIN, "params": "a='$HOME'"}).config.model_params == {"a": "$HOME"}


# ---- what a job needs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "missing"),
    [
        ("train", {}, "model_def, data, output"),
        ("train", {"model_def": "m.M", "data": ""}, "data, output"),
        ("evaluate", {}, "trained_model, data"),
        ("predict", {"data": "x"}, "trained_model, output"),
    ],
)
def test_missing_settings_are_named_with_an_example(
    kind: str, given: dict[str, object], missing: str
) -> None:
    with pytest.raises(UserError) as caught:
        resolve(given, kind=kind)
    assert str(caught.value).startswith(f"{missing}: expected by elasticdl {kind}; got nothing.")
    assert f"Example: elasticdl {kind} --" in str(caught.value)


def test_what_is_optional_may_be_missing() -> None:
    resolve({"trained_model": "out", "data": "test"}, kind="evaluate")
    resolve({"model_def": "m.M", "data": "train"}, optional=("output",))


@pytest.mark.parametrize(
    ("kind", "given", "name"),
    [
        ("train", {"model_def": "fintech.MyKerasModel"}, "fintech-my-keras-model-abc123"),
        ("train", {"model_def": "regressor.DNN"}, "regressor-dnn-abc123"),
        ("train", {"model_def": "_._"}, "train-abc123"),
        ("evaluate", {"trained_model": "/a/My_Model/"}, "evaluate-my-model-abc123"),
        ("predict", {"trained_model": "."}, "predict-abc123"),
    ],
)
def test_a_generated_name_says_what_the_job_is_about(
    kind: str, given: dict[str, object], name: str
) -> None:
    resolved = resolve({"data": "d", "output": "o", **given}, kind=kind)
    assert resolved.origins["job_name"] == config.Origin(name, "generated")


@given(model=st.text(min_size=1))
def test_generated_names_are_always_valid(model: str) -> None:
    origins = {"model_def": config.Origin(model, "flag")}
    name = config.generated_name("train", origins, "abc123")
    assert config.JobConfig(kind="train", job_name=name).job_name.endswith("abc123")


def test_two_jobs_have_two_names() -> None:
    one, other = (config.resolve("train", TRAIN, {"HOME": "/nowhere"}) for _ in range(2))
    assert one.config.job_name != other.config.job_name


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 63])
def test_a_given_name_is_kept(name: str) -> None:
    assert resolve({**TRAIN, "job_name": name}).config.job_name == name


# ---- values and text --------------------------------------------------------------------------

NAMES = st.from_regex(r"[^\W\d]\w{0,9}", fullmatch=True).filter(
    lambda name: (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and name == unicodedata.normalize("NFKC", name)
    )
)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters()),
    st.binary(),
)
LITERALS = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(HASHABLE, inner),
        st.sets(HASHABLE),
    ),
    max_leaves=10,
)


def kinds(value: object) -> object:
    """The value with its types, so that 1 and True and 1.0 differ."""
    if isinstance(value, dict):
        return [(kinds(key), kinds(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return (type(value), [kinds(each) for each in value])
    return (type(value), value, repr(value) if isinstance(value, float) else "")


@given(values=st.dictionaries(NAMES, LITERALS, max_size=4))
def test_params_come_back_as_they_were(values: dict[str, Any]) -> None:
    assert kinds(config.parse_params(config.format_params(values))) == kinds(values)


@given(text=st.text())
def test_any_other_text_as_params_is_a_user_error(text: str) -> None:
    try:
        values = config.parse_params(text)
    except UserError:
        return
    assert all(isinstance(name, str) for name in values)


@pytest.mark.parametrize(
    "text",
    ["1", "a", "a=b", "a=1, a=2", "a=__import__('os')", "**{'a': 1}", "a=1)(b=2", "a=(", "*"],
)
def test_params_are_literals_under_names(text: str) -> None:
    with pytest.raises(UserError, match=r"^params: expected name=literal, name=literal; got "):
        config.parse_params(text)


@pytest.mark.filterwarnings("error")
def test_odd_escapes_in_params_warn_nobody() -> None:
    assert config.parse_params(r"a='\d'") == {"a": r"\d"}


def test_numpy_values_in_params_become_pythons() -> None:
    values = {"a": np.float32(0.5), "b": np.arange(3), "c": np.str_("x"), "d": np.float64(2.0)}
    assert config.parse_params(config.format_params(values)) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": "x",
        "d": 2.0,
    }


@pytest.mark.parametrize(
    "values", [{"a": object()}, {"a": float("nan")}, {"a b": 1}, {"class": 1}, {"ﬁ": 1}]
)
def test_what_has_no_literal_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^params: "):
        config.format_params(values)


TEXTS = st.text(st.characters(), max_size=20)
BY_TYPE: Mapping[type, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers(1, 16),
    float: st.floats(0.0, 0.99, exclude_min=True),
    bool: st.booleans(),
}
FREE = [
    setting
    for setting in config.SETTINGS
    if setting.name
    not in (
        "checkpoint_every",
        "cluster",
        "job_name",
        "min_workers",
        "nan_loss",
        "num_workers",
        "params",
        "params_format",
        "streams",
    )
]


@given(
    kind=st.sampled_from(config.KINDS),
    values=st.fixed_dictionaries(
        {}, optional={setting.name: BY_TYPE[setting.type] for setting in FREE}
    ),
    params=st.dictionaries(NAMES, LITERALS, max_size=2),
)
def test_a_configuration_survives_its_json(
    kind: str, values: dict[str, Any], params: dict[str, Any]
) -> None:
    job = config.JobConfig(kind=kind, params=config.format_params(params), **values)
    assert config.JobConfig.from_json(job.to_json()) == job


def test_a_configuration_checks_types_whoever_makes_it() -> None:
    with pytest.raises(UserError, match=r"^epochs: expected a whole number; got '3'\.$"):
        config.JobConfig(kind="train", epochs="3")  # type: ignore[arg-type]


def test_every_setting_has_help_and_a_kind_that_has_it() -> None:
    for setting, kind in itertools.product(config.SETTINGS, config.KINDS):
        assert setting.help.endswith(".")
        assert setting.kinds
        assert setting.required <= setting.kinds
        assert (setting in config.settings(kind)) == (kind in setting.kinds)


# ---- Kubernetes ---------------------------------------------------------------------------------


def kubernetes(**given: object) -> config.JobConfig:
    return config.JobConfig(kind="train", cluster="kubernetes", job_name="j", **given)  # type: ignore[arg-type]


def test_a_configured_cluster_is_used_unless_told_otherwise(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert config.resolve("train", TRAIN, environ).config.cluster == "local"
    path = tmp_path / ".kube" / "config"
    path.parent.mkdir()
    path.touch()
    found = config.resolve("train", TRAIN, environ).origins["cluster"]
    assert found == config.Origin("kubernetes", str(path))
    told = config.resolve("train", TRAIN, {**environ, "ELASTICDL_CLUSTER": "local"})
    assert told.config.cluster == "local"
    elsewhere = {**environ, "KUBECONFIG": str(tmp_path / "nowhere")}
    assert config.resolve("train", TRAIN, elsewhere).config.cluster == "local"


def test_where_jobs_are_that_are_named_alone(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "ELASTICDL_NAMESPACE": "mine"}
    assert config.where({}, environ) == config.Where("local", "", "mine")
    given = {"cluster": "kubernetes", "namespace": "yours", "kube_context": None}
    assert config.where(given, environ) == config.Where("kubernetes", "", "yours")


def test_what_volumes_mean() -> None:
    text = "claim=records,path=/data/; host_path=/mnt/a,path=/out,sub_path=me,read_only=true"
    assert config.parse_volumes(text) == (
        config.Volume("records", "", "/data"),
        config.Volume("", "/mnt/a", "/out", "me", read_only=True),
    )
    assert config.parse_volumes("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "claim=a",
        "path=/data",
        "claim=a,host_path=/b,path=/data",
        "claim=a,path=data",
        "host_path=b,path=/data",
        "claim=a,path=/data,size=3",
        "claim=a,path=/",
        "claim=a,path=/data;claim=b,path=/data/",
        "claim=a,path=/data,read_only=perhaps",
    ],
)
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(UserError, match="volumes: expected"):
        kubernetes(volumes=text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("100m", 0.1), ("1.5", 1.5), ("2Gi", 2 << 30), ("3k", 3000), ("4M", 4_000_000)],
)
def test_what_quantities_mean(text: str, value: float) -> None:
    assert config.quantity(text) == value


@pytest.mark.parametrize(
    "given",
    [
        {"worker_requests": "cpu=many"},
        {"worker_requests": "cpu=0"},
        {"worker_limits": "memory=2GB"},
        {"master_requests": "cpu"},
        {"env": "A"},
        {"env": "A=1,A=2"},
        {"node_selector": "=a"},
        {"tolerations": "spot:Sometimes"},
        {"worker_gpus": 2},
        {"keep_s": -1.0},
    ],
)
def test_what_kubernetes_could_not_take_is_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(given))}: expected"):
        kubernetes(**given)


def test_what_tolerations_mean() -> None:
    assert config.parse_tolerations("spot=true:NoSchedule, gpu, old:NoExecute") == (
        config.Toleration("spot", "true", "NoSchedule"),
        config.Toleration("gpu", "", ""),
        config.Toleration("old", "", "NoExecute"),
    )


def test_on_kubernetes_names_are_shorter() -> None:
    with pytest.raises(UserError, match="job_name: expected at most 40 characters"):
        config.JobConfig(kind="train", cluster="kubernetes", job_name="a" * 41)
