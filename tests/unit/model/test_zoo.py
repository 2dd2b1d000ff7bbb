"""Names in a zoo are found as the document says, and zoo files never get in anyone's way."""

import json
import queue
import subprocess
import sys
import textwrap

import pytest

from elasticdl.errors import UserCodeError, UserError
from elasticdl.model import zoo


@pytest.fixture
def make(tmp_path):
    """Writes a zoo's files; its directory."""

    def made(files, name="zoo"):
        root = tmp_path / name
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        root.mkdir(exist_ok=True)
        return str(root)

    return made


def refusal(directory, dotted):
    with pytest.raises(UserError) as caught:
        zoo.Zoo(directory).find(dotted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "dotted", "file"),
    [
        ({"fintech.py": "class Model: pass"}, "fintech.Model", "fintech.py"),
        ({"fintech/__init__.py": "class Model: pass"}, "fintech.Model", "fintech/__init__.py"),
        (
            {"fintech/credit.py": "class Model: pass", "fintech/other.py": "x = 1"},
            "fintech.Model",
            "fintech/credit.py",
        ),
        (
            {"fintech/__init__.py": "'''Nothing.'''", "fintech/credit.py": "Model = dict"},
            "fintech.Model",
            "fintech/credit.py",
        ),
        (
            {"fintech/a.py": "class Model: pass", "fintech/b.py": "from fintech.a import Model"},
            "fintech.Model",
            "fintech/a.py",
        ),
        (
            {"regressor.py": "", "regressor/wide_and_deep.py": "class MagicalWAD: pass"},
            "regressor.wide_and_deep.MagicalWAD",
            "regressor/wide_and_deep.py",
        ),
        ({"a.py": "if True:\n    def f(): pass"}, "a.f", "a.py"),
        ({"a.py": "import json as f"}, "a.f", "a.py"),
        ({"a.py": "x, (f, z) = 1, (2, 3)"}, "a.f", "a.py"),
    ],
)
def test_a_name_is_found_in_its_file(make, files, dotted, file):
    directory = make(files)
    found = zoo.Zoo(directory).find(dotted)
    assert found.path == f"{directory}/{file}"
    assert zoo.Zoo(directory).load(dotted) is not None


def test_finding_imports_nothing(make):
    directory = make({"costly.py": "raise SystemExit\nclass Model: pass"})
    assert zoo.Zoo(directory).find("costly.Model").module == "costly"


def test_where_only_importing_would_tell_the_file_is_found_and_loading_decides(make):
    directory = make(
        {
            "star.py": "from stars import *",
            "stars.py": "__all__ = ['Sun']\nclass Sun: pass",
            "late.py": "globals()['Model'] = 7",
            "lazy.py": "def __getattr__(name):\n    return name.upper()",
        }
    )
    files = zoo.Zoo(directory)
    assert files.find("star.Sun").path.endswith("star.py")
    assert files.load("star.Sun").__name__ == "Sun"
    assert files.load("late.Model") == 7
    assert files.load("lazy.model") == "MODEL"
    with pytest.raises(UserError, match=r"star\.Moon: expected a definition of Moon"):
        files.load("star.Moon")


def test_two_files_that_define_a_name_are_both_named(make):
    text = refusal(
        make({"fintech/a.py": "class Model: pass", "fintech/b.py": "Model = 1"}), "fintech.Model"
    )
    assert "fintech/a.py" in text
    assert "fintech/b.py" in text
    assert "fintech.a.Model or fintech.b.Model" in text


def test_what_is_missing_is_said_with_what_there_is(make, tmp_path):
    directory = make({"fintech.py": "class MyModel: pass\n_hidden = 1", "sub/deep.py": "x = 1"})
    assert "expected fintec.py or a directory fintec" in refusal(directory, "fintec.MyModel")
    assert "found fintech.py, sub/. Did you mean fintech?" in refusal(directory, "fintec.MyModel")
    assert "fintech.py defines MyModel. Did you mean MyModel?" in refusal(
        directory, "fintech.MyMdel"
    )
    assert "found deep.py in sub. Did you mean deep?" in refusal(directory, "sub.deeep.x")
    assert "expected module.name" in refusal(directory, "MyModel")
    assert "expected module.name" in refusal(directory, "fintech.")
    assert "no Python files" in refusal(make({}, "empty"), "fintech.MyModel")
    with pytest.raises(UserError, match=r"has no zooo\. Did you mean zoo\?"):
        zoo.Zoo(str(tmp_path / "zooo"))
    with pytest.raises(UserError, match=r"there is no .*nowhere either"):
        zoo.Zoo(str(tmp_path / "nowhere" / "zoo"))
    with pytest.raises(UserError, match=r"got the file .*fintech\.py"):
        zoo.Zoo(f"{directory}/fintech.py")


def test_paths_are_expanded(make, monkeypatch):
    directory = make({"a.py": "x = 1"})
    monkeypatch.setenv("MODELS", directory)
    assert zoo.Zoo("$MODELS").load("a.x") == 1


@pytest.mark.parametrize("with_zoo", [False, True])
def test_the_shipped_zoo_stands_behind_the_users(make, with_zoo):
    files = zoo.Zoo(make({"other.py": "x = 1"}) if with_zoo else None)
    found = files.find("mnist.MnistElasticDLSpec")
    assert found.shipped
    assert found.path.endswith("elasticdl/zoo/mnist.py")


def test_the_users_zoo_comes_first(make):
    directory = make({"mnist.py": "MnistElasticDLSpec = 'mine'"})
    assert zoo.Zoo(directory).load("mnist.MnistElasticDLSpec") == "mine"


def test_files_of_a_zoo_import_each_other(make):
    directory = make(
        {
            "helper.py": "value = 1",
            "pack/__init__.py": "",
            "pack/near.py": "value = 2",
            "pack/model.py": """
                import helper
                import pack.near as renamed
                from helper import value
                from . import near
                from .near import value as near_value

                def later():
                    import late
                    from pack import near
                    return late.value + near.value

                result = (helper.value, value, near.value, near_value, renamed is near)
            """,
            "late.py": "value = 3",
        }
    )
    files = zoo.Zoo(directory)
    assert files.load("pack.model.result") == (1, 1, 2, 2, True)
    assert files.load("pack.model.later")() == 5


def test_objects_have_their_own_dotted_name_and_are_the_same_each_time(make):
    files = zoo.Zoo(make({"fintech/credit.py": "class Model: pass"}))
    model = files.load("fintech.Model")
    assert model.__module__ == "fintech.credit"
    assert files.load("fintech.credit.Model") is model
    assert sys.modules["fintech.credit"].Model is model


def test_two_zoos_do_not_see_each_other(make):
    one = zoo.Zoo(make({"shared.py": "value = 1", "m.py": "import shared as s"}, "one"))
    two = zoo.Zoo(make({"shared.py": "value = 2", "m.py": "import shared as s"}, "two"))
    assert one.load("m.s").value == 1
    assert two.load("m.s").value == 2
    assert one.load("m.s").value == 1


def test_a_zoo_file_wins_over_a_module_of_its_name_for_the_zoo_alone(make):
    # `queue` is imported already, `this` is not, and numpy is installed.
    directory = make(
        {
            "queue.py": "mine = True",
            "this.py": "mine = True",
            "test.py": "class Model: pass",
            "numpy.py": "mine = True",
            "m.py": """
                import json, queue, this, numpy
                from queue import mine
                all_mine = (queue.mine, this.mine, numpy.mine, mine)
                foreign = json
            """,
        }
    )
    path = list(sys.path)
    files = zoo.Zoo(directory)
    assert files.load("m.all_mine") == (True, True, True, True)
    assert files.load("m.foreign") is json
    assert files.load("test.Model").__module__ == "test"
    assert sys.modules["queue"] is queue
    assert sys.path == path
    for name in ("this", "test", "numpy"):
        assert not getattr(sys.modules.get(name), "__file__", "").startswith(directory)


def test_a_directory_without_init_gives_way_to_an_installed_module(make):
    directory = make({"json/notes.py": "x = 1", "m.py": "import json\nresult = json.dumps([])"})
    assert zoo.Zoo(directory).load("m.result") == "[]"
    assert zoo.Zoo(directory).load("json.x") == 1


def test_a_checkout_of_elasticdl_as_zoo_is_no_second_elasticdl(make):
    directory = make(
        {"elasticdl/__init__.py": "raise ImportError", "m.py": "from elasticdl import Mode as x"}
    )
    assert zoo.Zoo(directory).load("m.x").__module__ == "elasticdl.model.mode"


def test_loading_leaves_nothing_beside_the_files(make, tmp_path):
    directory = make({"m.py": "x = 1"})
    zoo.Zoo(directory).load("m.x")
    assert [file.name for file in (tmp_path / "zoo").iterdir()] == ["m.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f():\n    raise KeyError('k')\nf()", "KeyError: 'k'"),
        ("import no_such_module as f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import helper.no as f", "ModuleNotFoundError: No module named 'helper.no' in the zoo"),
        ("from . import f", "ImportError: attempted relative import with no known parent package"),
        ("f = 1\nraise SystemExit(3)", "SystemExit: 3"),
        ("class f:", "IndentationError: expected an indented block"),
    ],
)
def test_a_file_that_raises_is_reported_with_its_own_frames(make, text, message):
    directory = make({"broken.py": text, "helper.py": ""})
    with pytest.raises(UserCodeError) as caught:
        zoo.Zoo(directory).load("broken.f")
    assert f"import of {directory}/broken.py: {message}" in str(caught.value)
    trace = caught.value.trace
    assert f"{directory}/broken.py" in trace
    assert "elasticdl/model" not in trace
    assert "importlib" not in trace
    # Nothing half imported stays behind.
    assert "broken" not in sys.modules


def test_a_name_is_found_without_tensorflow():
    check = (
        "import sys\n"
        "from elasticdl.model import zoo\n"
        "zoo.Zoo(None).find('mnist.MnistElasticDLSpec')\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
