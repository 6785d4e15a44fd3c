"""Nothing that a plugin does wrong breaks another person's ``hftl``; each is named with what is wrong with it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import Site, good

import hftl


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# For each faulty plugin its code and what is said of it.
FAULTY = {
    "raises": ("raise RuntimeError('no licence\\nfound')", "RuntimeError: no licence found"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "lacks-a-library": ("import surely_not_installed", "No module named 'surely_not_installed'"),
    "no-python": ("def f(:", "SyntaxError"),
    "no-hook": ("x = 1", "implements no hook"),
    "misspelt": ("@hook\ndef hftl_register_backbone(register): pass", "no hook is called hftl_register_backbone;"),
    "wants-more": ("@hook\ndef hftl_register_backbones(register, device): pass", "Argument(s) {'device'}"),
    "wraps": ("@hftl.hookimpl(wrapper=True)\ndef hftl_log(event):\n    yield", "hftl_log is a wrapper"),
    "half-done": (
        "@hook\ndef hftl_register_backbones(register):\n"
        "    register(hftl.BackboneSpec('half-done', 'image', print))\n    raise SystemExit('enough')",
        "hftl_register_backbones failed: SystemExit: enough",
    ),
    "gives-text": (
        "@hook\ndef hftl_register_backbones(register):\n    register('resnet')",
        "it gave a str where a BackboneSpec is due",
    ),
    "gives-no-loader": (
        "@hook\ndef hftl_register_backbones(register):\n    register(hftl.BackboneSpec('x', 'image', None))",
        "load is no function",
    ),
    "gives-no-metric": (
        "@hook\ndef hftl_register_metrics(register):\n    register('x', 3)",
        "metric 'x' is a int where a function is due",
    ),
    "half-a-recipe": ("@hook\ndef hftl_register_recipes(register):\n    register('x')", "TypeError"),
    "takes-run": (
        "@hook\ndef hftl_register_commands(app):\n    app.command('run')(lambda: print('mine'))",
        "hftl has a command run already",
    ),
    "odd-command": (
        "def odd(x: int | str) -> None: pass\n@hook\ndef hftl_register_commands(app):\n    app.command('odd')(odd)",
        "its commands do not work: ",
    ),
    "no-command": ("@hook\ndef hftl_register_commands(app):\n    1 / 0", "failed: ZeroDivisionError"),
}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every faulty plugin beside one that is good."""
    site = Site(tmp_path_factory.mktemp("crowd"))
    for name, (code, _) in FAULTY.items():
        site.install(name, f"import hftl\nhook = hftl.hookimpl\n{code}" if "hook" in code else code)
    site.install("good", good("good"))
    return site


@pytest.fixture(scope="module")
def listed(crowd: Site) -> dict[str, dict[str, Any]]:
    return crowd.plugins()


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_plugin_is_listed_with_what_is_wrong(listed: dict[str, dict[str, Any]], name: str) -> None:
    row = listed[name]
    assert not row["loaded"]
    assert FAULTY[name][1] in row["error"], row["error"]
    assert "\n" not in row["error"]
    assert row["gives"] == []


def test_good_plugin_among_faulty_ones_works(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["good"] == {
        "plugin": "good",
        "package": "good",
        "version": "1.2",
        "hooks": ["hftl_register_backbones"],
        "gives": ["backbone good"],
        "error": None,
        "loaded": True,
    }


def test_other_commands_work_on_beside_faulty_plugins(crowd: Site) -> None:
    done = crowd.hftl("backbones", "--json")
    assert done.returncode == 0
    names = [row["name"] for row in json.loads(done.stdout)]
    assert "good" in names
    assert "half-done" not in names
    # Each is warned about once, in one line, if this command met its fault.
    warned = [line.split("'")[1] for line in done.stderr.splitlines()]
    unmet = {"gives-no-metric", "half-a-recipe"}
    assert sorted(warned) == sorted(set(FAULTY) - unmet)
    helped = crowd.hftl("run", "--help")
    assert helped.returncode == 0
    assert "Do what a recipe says" in helped.stdout


def test_old_plugin_with_fewer_arguments_works(site: Site) -> None:
    site.install(
        "old",
        """
        import hftl

        @hftl.hookimpl
        def hftl_resolve_backbone():
            return None

        @hftl.hookimpl
        def hftl_run_start(folder):
            pass
        """,
    )
    site.install("other", good("other"))
    assert site.plugins()["old"]["error"] is None
    (site.folder / "r.py").write_text(RECIPE.format(backbone="nobody-has-this"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert "no backbone is called 'nobody-has-this'" in done.stderr


RECIPE = """
from hftl import Recipe, recipe

@recipe
def r() -> Recipe:
    return Recipe(backbone="{backbone}", data="sample:digits")
"""


def test_failed_plugin_is_named_when_what_it_may_have_given_is_asked_for(site: Site) -> None:
    site.install("missing", "import surely_not_installed")
    (site.folder / "r.py").write_text(RECIPE.format(backbone="their-model"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "hftl: no backbone is called 'their-model'; `hftl backbones` lists those registered (plugins that failed "
        "to load: missing: ModuleNotFoundError: No module named 'surely_not_installed')"
    )
    done = site.hftl("run", "their-recipe")
    assert done.returncode == 2
    assert "no recipe is called 'their-recipe'" in done.stderr
    assert "(plugins that failed to load: missing: " in done.stderr


def test_loader_that_returns_the_wrong_thing(site: Site) -> None:
    site.install("liar", good("their-model"))
    (site.folder / "r.py").write_text(RECIPE.format(backbone="their-model"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "hftl: plugin 'liar' loads 'their-model' as a str, which is no hftl.Backbone"
    )


def test_two_plugins_claim_one_backbone(site: Site) -> None:
    site.install("first-author", good("resnet"))
    site.install("second-author", good("resnet"))
    site.install("third-author", good("free"))
    # The list names both and goes on; who asks for the name is refused.
    listed = site.hftl("backbones", "--json")
    assert listed.returncode == 0
    claims = {row["plugin"]: row["error"] for row in json.loads(listed.stdout) if row["name"] == "resnet"}
    conflict = "backbone 'resnet' is claimed by two plugins, first-author and second-author; uninstall one"
    assert set(claims) == {"first-author 1.2", "second-author 1.2"}
    assert all(error.startswith(conflict) for error in claims.values())
    assert "third-author 1.2" in listed.stdout
    assert "claimed by two plugins" in site.hftl("backbones").stdout
    (site.folder / "r.py").write_text(RECIPE.format(backbone="resnet"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert "claimed by two plugins" in done.stderr
    # Only the contested name is lost.
    assert site.python("from hftl.plugins.registry import find; print(find('free').plugin)") == "third-author"
    rows = site.plugins()
    assert rows["first-author"]["error"] == "backbone 'resnet' is also claimed by second-author"
    assert rows["second-author"]["error"] == "backbone 'resnet' is also claimed by first-author"
    assert rows["third-author"]["error"] is None
    chosen = site.hftl("backbones", HFTL_PLUGINS="second-author")
    assert chosen.returncode == 0
    assert "second-author 1.2" in chosen.stdout


def test_two_plugins_of_one_name(site: Site) -> None:
    site.install("apple", good("apple"), entry="fruit")
    site.install("pear", good("pear"), entry="fruit")
    done = site.hftl("plugins", "--json")
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    assert rows["apple"]["error"] is None
    assert rows["apple"]["gives"] == ["backbone apple"]
    assert "apple, has a plugin of this name" in rows["pear"]["error"]


def test_torch_at_registration_is_said(site: Site) -> None:
    # A stand-in, for the real one takes seconds to import.
    (site.folder / "torch.py").write_text("")
    site.install("early", "import torch\n" + good("early").replace("\n    ", "\n"))
    site.install(
        "late",
        """
        import hftl

        @hftl.hookimpl
        def hftl_register_backbones(register):
            import transformers
        """,
    )
    (site.folder / "transformers.py").write_text("")
    rows = site.plugins()
    assert rows["early"]["loaded"]
    assert rows["early"]["error"].startswith("slow: imports torch when it registers")
    assert rows["late"]["error"].startswith("slow: imports transformers when it registers")


def test_resolve_that_raises_is_skipped_and_its_own_error_reaches_the_user(site: Site) -> None:
    site.install(
        "crash",
        """
        import hftl

        @hftl.hookimpl
        def hftl_resolve_backbone(ref):
            if ref == "mine/bad":
                raise hftl.BackboneError("mine/bad has no weights; take mine/good")
            1 / 0
        """,
    )
    (site.folder / "r.py").write_text(RECIPE.format(backbone="nowhere"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert "hftl_resolve_backbone failed: ZeroDivisionError" in done.stderr
    assert "no backbone is called 'nowhere'" in done.stderr
    done = site.hftl("run", "r.py", "--backbone", "mine/bad")
    assert done.stderr == "hftl: mine/bad has no weights; take mine/good\n"


def test_what_a_plugin_prints_stays_out_of_json(site: Site) -> None:
    site.install("chatty", "print('hello')\n" + good("chatty").replace("\n    ", "\n"))
    done = site.hftl("plugins", "--json")
    assert json.loads(done.stdout)[0]["plugin"] == "chatty"
    assert "hello" in done.stderr


def test_what_a_plugin_writes_below_python_stays_out_of_json(site: Site) -> None:
    # As libraries in C do, whatever sys.stdout is.
    site.install(
        "deep",
        """
        import os, hftl
        os.write(1, b"at import")

        @hftl.hookimpl
        def hftl_register_backbones(register):
            os.write(1, b"at registration")
            os.system("echo from a child")
            register(hftl.BackboneSpec("deep", "image", print))
        """,
    )
    done = site.hftl("backbones", "--json")
    assert "deep" in [row["name"] for row in json.loads(done.stdout)]
    for said in ("at import", "at registration", "from a child"):
        assert said in done.stderr


def test_slow_import_is_said(site: Site) -> None:
    site.install("sleepy", "import time\ntime.sleep(0.5)\n" + good("sleepy").replace("\n    ", "\n"))
    row = site.plugins()["sleepy"]
    assert row["loaded"]
    assert row["error"].startswith("slow: every command waits ")


def test_backbone_that_lacks_something_is_told_what(site: Site) -> None:
    site.install(
        "half",
        """
        import hftl

        @hftl.hookimpl
        def hftl_register_backbones(register):
            register(hftl.BackboneSpec("half", "image", load))

        def load(options):
            print("loading")
            given = dict.fromkeys(("name", "commit", "modality", "wants", "suffixes", "pipeline_tag", "library"), "")
            done = dict.fromkeys(("max_length", "license", "pickled", "base_reference", "identity", "encode"), "")
            more = dict.fromkeys(("notes", "collate", "probes", "config", "build"), "")
            return type("Half", (), given | done | more)()
        """,
    )
    (site.folder / "r.py").write_text(RECIPE.format(backbone="half"))
    done = site.hftl("run", "r.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "hftl: plugin 'half' loads 'half' as a Half, which is no hftl.Backbone: it lacks load_trained, "
        "save_processor, skeleton, weight_files"
    )


def test_hftl_plugins_restricts_what_is_loaded(site: Site) -> None:
    site.install("one", good("one"))
    site.install("two", "raise RuntimeError")
    assert set(site.plugins(HFTL_PLUGINS="one")) == {"one"}
    assert site.plugins(HFTL_PLUGINS="") == {}
    wrong = site.hftl("plugins", HFTL_PLUGINS="one,three")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("hftl: HFTL_PLUGINS names three, which is not installed; installed:")


def test_table_all_and_hooks(site: Site) -> None:
    site.install("one", good("one"))
    table = site.hftl("plugins").stdout
    assert "1.2" in table
    assert "hftl_register_backbones" in table
    assert "hftl.backbones" not in table
    every = site.hftl("plugins", "--all", "--json")
    assert [row["plugin"] for row in json.loads(every.stdout)] == ["hftl.backbones", "one"]


def test_trace_prints_loads_and_calls(site: Site) -> None:
    site.install("traced", good("traced"))
    lines = site.hftl("backbones", HFTL_TRACE_PLUGINS="1").stderr.splitlines()
    assert "hftl: loading traced 1.2" in lines
    assert "hftl: hftl_register_backbones of traced 1.2" in lines
    assert site.hftl("backbones").stderr == ""


def test_recipe_claimed_twice(site: Site) -> None:
    site.install("one", "", entry="flowers", group="hftl.recipes")
    site.install("two", "", entry="flowers", group="hftl.recipes")
    site.install("three", "", entry="trees", group="hftl.recipes")
    done = site.hftl("recipes", HFTL_PLUGINS="")
    assert done.returncode == 0
    assert "recipe 'flowers' is claimed twice, as " in done.stdout
    assert "trees" in done.stdout
    asked = site.hftl("run", "flowers", HFTL_PLUGINS="")
    assert (asked.returncode, "recipe 'flowers' is claimed twice, as " in asked.stderr) == (2, True)
    listed = site.hftl("plugins", HFTL_PLUGINS="")
    assert listed.returncode == 0


def test_help_with_ten_plugins_imports_no_torch(site: Site) -> None:
    for i in range(10):
        site.install(f"plugin-{i}", good(f"backbone-{i}"))
    code = (
        "import sys; sys.argv = ['hftl', '--help']\n"
        "from hftl.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "loaded = [m for m in sys.modules if m.startswith('plugin_')]\n"
        "print('HEAVY', sorted(heavy), len(loaded))"
    )
    assert site.python(code).splitlines()[-1] == "HEAVY [] 10"


def test_plugins_of_this_repository_use_public_names_only() -> None:
    files = list((Path(__file__).parent.parent / "plugins").glob("*/hftl_*/*.py"))
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "hftl":
                assert {alias.name for alias in node.names} <= set(hftl.__all__), file
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("hftl."), file
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("hftl.") for alias in node.names), file
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hftl":
                assert node.attr in hftl.__all__, file
