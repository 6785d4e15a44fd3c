"""A store whose files are not files: folders, FIFOs, links, devices, texts that are nothing like what was written.

Whatever stands at whatever name, each command ends soon, in status 0 or in one line, and a run has right rows or none.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import Cli

from hftl.errors import HftlError, StoreError
from hftl.regular import OddFileError, open_regular, read_bounded
from hftl.store.description import Description
from hftl.store.shard import header_rows
from hftl.store.store import ColumnSpec, FeatureStore, Space

IDENTITY = {"model": "org/a", "commit": "c0ffee", "modality": "text"}
COLUMNS = {"f": ColumnSpec("float32", (2,))}
DIGESTS = np.arange(160, dtype=np.uint8).reshape(10, 16)
VALUES = np.arange(20, dtype=np.float32).reshape(10, 2)


def use(store: FeatureStore, model: str = "a") -> Space:
    """What a run does: find what is missing, compute it, read everything."""
    space = store.space({**IDENTITY, "model": model}, f"org/{model}")
    space.create({"cut": "native"}, COLUMNS)
    missing = ~space.known(DIGESTS)
    if missing.any():
        space.commit(DIGESTS[missing], {"f": VALUES[missing]})
    assert np.array_equal(space.gather_arrays(DIGESTS)["f"], VALUES)
    return space


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    (path / "in" / "it").mkdir(parents=True)
    (path / "in" / "a.txt").write_text("a")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_the_store(path: Path) -> None:
    path.symlink_to(path.parent.parent, target_is_directory=True)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def empty(path: Path) -> None:
    path.touch()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def deeply_nested(path: Path) -> None:
    text = b"[" * 200_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def json_that_python_refuses(path: Path) -> None:
    path.write_text('{"checksum": NaN, "format": ' + "9" * 6000 + "}")


ODD = [
    fifo,
    folder,
    link_to_nowhere,
    link_to_itself,
    link_to_an_endless_device,
    link_to_the_store,
    a_socket,
    empty,
    huge,
    deeply_nested,
    json_that_python_refuses,
]
COMMANDS = [
    ("ls", "--json"),
    ("stats", "--json"),
    ("verify", "--json"),
    ("compact",),
    ("gc", "2T", "--json"),
    ("clear", "--all", "--yes", "--force", "--json"),
]


@pytest.fixture(autouse=True)
def ends_soon() -> Iterator[None]:
    """A hang is a failure, not a stuck suite."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("HFTL_CACHE", str(root))
    monkeypatch.setenv("HFTL_PLUGINS", "")
    return root


def places_in(space: Space) -> list[Path]:
    """Every name in a space at which something can stand."""
    (shard,) = (space.path / "shards").iterdir()
    (lease,) = (space.path / "leases").iterdir()
    names = ["", "space.json", "shards", "leases", "quarantine", "last_used", "compaction.lock"]
    more = [shard.with_name("0" * 32 + ".safetensors"), shard.with_name(".tmp-00000000-1-00000000")]
    return [*(space.path / name for name in names), shard, lease, *more]


def places_beside(root: Path) -> list[Path]:
    names = [
        "features",
        "features/.trash-00000000-1-00000000",
        "features/stray",
        "digests",
        "digests/files.safetensors",
        "claims",
        "foreign",
        "foreign/.trash-00000000-1-00000000",
        "foreign/stray",
    ]
    return [root / name for name in names]


def put(make: Callable[[Path], None], path: Path) -> None:
    """Something odd in the place of whatever stands at ``path``."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)


def run_every_command(cli: Cli) -> None:
    for command in COMMANDS:
        status = cli("cache", *command)
        lines = cli.err.splitlines()
        assert status in (0, 1), (command, status, cli.err)
        assert len(lines) == (0 if status == 0 else 1), (command, cli.err)
        assert all(line.startswith("hftl: ") for line in lines)
        if command[-1] == "--json" and cli.out:
            json.loads(cli.out)


@pytest.mark.parametrize("number", range(11))
def test_every_command_ends_well_whatever_stands_at_a_name_of_a_space(root: Path, cli: Cli, number: int):
    store = FeatureStore(root)
    for make in ODD:
        put(make, places_in(use(store, make.__name__))[number])
    run_every_command(cli)
    assert not [path for path in (root / "features").iterdir() if path.is_dir()]


def test_every_command_ends_well_whatever_stands_beside_the_spaces(root: Path, cli: Cli):
    use(FeatureStore(root))
    for make in ODD:
        for place in places_beside(root)[1:]:
            put(make, place.with_name(f"{place.name}-{make.__name__}"))
        put(make, root / "claims" / make.__name__)
    run_every_command(cli)
    for name in ("claims", "foreign"):
        put(link_to_itself, root / name)
    run_every_command(cli)
    strays = {f"stray-{make.__name__}" for make in ODD} - {"stray-empty"}
    assert strays <= {path.name for path in (root / "features").iterdir()}, "what is no space is not removed"


@pytest.mark.parametrize("make", ODD)
def test_every_command_ends_well_whatever_stands_in_place_of_all_spaces(
    root: Path, cli: Cli, make: Callable[[Path], None]
):
    use(FeatureStore(root))
    put(make, root / "features")
    put(make, root / "foreign")
    for command in COMMANDS[::5]:
        assert cli("cache", *command) in (0, 1)
        assert len(cli.err.splitlines()) <= 1
    assert os.path.lexists(root / "features")


@pytest.mark.parametrize("make", ODD)
def test_a_run_has_right_rows_or_one_line_whatever_stands_at_any_name(root: Path, make: Callable[[Path], None]):
    """In the places of files the damage is set aside and the rows are there again; elsewhere a line says what to do."""
    source = root.parent / "source.txt"
    source.write_text("content")
    for number in range(17):
        shutil.rmtree(root, ignore_errors=True)
        target = [*places_in(use(FeatureStore(root))), *places_beside(root)][number]
        put(make, target)
        assert len(FeatureStore(root).file_digests.digests([str(source)])) == 1
        error = refusal(root)
        if error:
            assert target.name not in ("space.json", "files.safetensors"), (target, error)
            assert not target.name.endswith(".safetensors"), (target, error)
            assert str(root) in error
            put(lambda path: None, target)  # what the message says: move it away
            use(FeatureStore(root))


def refusal(root: Path) -> str | None:
    try:
        use(FeatureStore(root))
    except HftlError as error:
        return str(error)
    return None


@pytest.mark.parametrize("make", ODD)
def test_verify_sets_odd_descriptions_and_shards_aside(root: Path, make: Callable[[Path], None]):
    for name in ("space.json", "shard"):
        space = use(FeatureStore(root))
        target = space.path / name if name == "space.json" else next((space.path / "shards").iterdir())
        put(make, target)
        (report,) = FeatureStore(root).verify()
        assert report.bad == [target.name]
        assert not os.path.lexists(target)
        (report,) = FeatureStore(root).verify()
        assert report.bad == []
        use(FeatureStore(root))
        shutil.rmtree(root)


def test_a_link_to_a_whole_file_is_as_good_as_the_file(root: Path):
    space = use(FeatureStore(root))
    for path in (space.path / "space.json", next((space.path / "shards").iterdir())):
        elsewhere = root.parent / path.name
        shutil.move(path, elsewhere)
        path.symlink_to(elsewhere)
    fresh = use(FeatureStore(root))
    assert len(fresh.shard_sizes()) == 1
    assert all(path.is_symlink() for path in (fresh.path / "shards").iterdir())


def test_removing_a_link_leaves_what_it_leads_to(root: Path, cli: Cli):
    space = use(FeatureStore(root))
    elsewhere = root.parent / "elsewhere"
    shutil.move(space.path, elsewhere)
    space.path.symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "quarantine").symlink_to(root.parent / "precious")
    (root.parent / "precious").mkdir()
    (root.parent / "precious" / "file").touch()
    assert cli("cache", "clear", "--all", "--yes", "--force") == 0
    assert not os.path.lexists(space.path)
    assert (elsewhere / "space.json").exists()
    assert (root.parent / "precious" / "file").exists()


def test_descriptions_of_other_types_are_damage(root: Path):
    """Their checksum is right, so somebody meant them; they are not descriptions all the same."""
    from hftl.store.description import _checksum

    space = use(FeatureStore(root))
    path = space.path / "space.json"
    content = json.loads(path.read_text())
    for name, value in [
        ("identity", [["model", "org/a"]]),
        ("identity", "x"),
        ("label", 5),
        ("label", None),
        ("info", []),
        ("created", 7),
        ("hftl", None),
        ("columns", []),
        ("columns", {"f": {"dtype": "object", "shape": [2], "ragged": False}}),
        ("columns", {"f": {"dtype": "float32", "shape": [2.5], "ragged": False}}),
        ("columns", {"f": {"dtype": "float32", "shape": "ab", "ragged": False}}),
        ("columns", {"f": {"dtype": "float32", "shape": [2], "ragged": "no"}}),
        ("columns", {"f": {"dtype": ["float32"], "shape": [2], "ragged": False}}),
    ]:
        changed = {key: part for key, part in content.items() if key != "checksum"} | {name: value}
        changed["checksum"] = _checksum(changed)
        path.write_text(json.dumps(changed))
        assert Description.load(path) is None, (name, value)
    use(FeatureStore(root))


@pytest.mark.parametrize(
    "header",
    [
        b'{"digests":{"shape":[1e999]}}',
        b'{"digests":{"shape":[-4,16]}}',
        b'{"digests":{"shape":[1000000000000,16]}}',
        b'{"digests":{"shape":[]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_header_that_rotted_counts_no_rows(tmp_path: Path, header: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert header_rows(path) == 0


def test_only_regular_files_are_opened(tmp_path: Path):
    for make in ODD:
        path = tmp_path / make.__name__
        make(path)
        if path.is_file():
            os.close(open_regular(path))
        else:
            with pytest.raises(OddFileError):
                open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
    with pytest.raises(OddFileError, match="larger than 1,000 bytes"):
        read_bounded(tmp_path / "huge", 1000)


def test_a_description_that_cannot_be_set_aside_is_one_line_whose_advice_works(root: Path, cli: Cli):
    space = use(FeatureStore(root))
    put(fifo, space.path / "space.json")
    (space.path / "quarantine").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot be moved to quarantine: remove the space with hftl cache clear"):
        use(FeatureStore(root))
    assert cli("cache", "clear", space.path.name, "--force") == 0
    use(FeatureStore(root))


# -- modes ----------------------------------------------------------------------------------------------------------

AS_SOMEBODY = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_store_odd_files as here
from hftl.cli import main
given, sys.argv = sys.argv, ["hftl", "cache", "verify", "--json"]
os.environ["HFTL_CACHE"] = given[1] + "-none"
try:
    main()  # imports what the other user may not be able to read
except SystemExit:
    pass
sys.argv = given
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv.pop(1))
os.environ["HFTL_CACHE"] = str(root)
"""
USE = AS_SOMEBODY + "here.use(here.FeatureStore(root))\nprint('right')"
COMMAND = AS_SOMEBODY + "main()"


def as_somebody(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code as a user whom modes bind; another session of pytest may have closed the folders above meanwhile."""
    for parent in Path(arguments[0]).parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-c", code.format(tests=str(Path(__file__).parent)), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HFTL_PLUGINS": ""},
    )


def test_a_store_of_odd_modes_is_used_or_refused_in_one_line(tmp_path: Path):
    tmp_path.chmod(0o777)
    root = tmp_path / "cache"
    done = as_somebody(USE, root)
    assert done.stdout == "[]\nright\n", done.stderr
    (space,) = (root / "features").iterdir()
    for place in (root, space, space / "shards"):
        place.chmod(0o111)
        done = as_somebody(COMMAND, root, "cache", "verify", "--json")
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1
        place.chmod(0o700)
    (space / "shards").chmod(0o500)
    space.chmod(0o500)
    done = as_somebody(COMMAND, root, "cache", "clear", "--all", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert list((root / "features").iterdir()) == []


def test_the_owner_can_read_what_it_wrote_whatever_the_folders_mode(root: Path):
    root.mkdir(mode=0o755)
    root.chmod(0o033)
    space = use(FeatureStore(root))
    for path in (space.path, space.path / "shards", *space.path.rglob("*.*")):
        assert path.stat().st_mode & 0o600 == 0o600, path
