"""Pictures are decoded by other processes as by threads: the same numbers, the same errors, nothing left over."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from finetune import small
from PIL import Image, ImageFile
from pixels import Odd, Pixels, Scaled, WithThreads
from runs import Cli, metrics, write_images

from hftl import Recipe, features
from hftl.ahead import ahead
from hftl.backbones.protocol import Encoded, Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.data import Files
from hftl.data.augment import Augmentation
from hftl.decoding import Decoder, cores, decoder_of
from hftl.decoding.choice import SECONDS_TO_START, Choice, Stretch
from hftl.errors import BadRowError
from hftl.finetune.losses import Loss
from hftl.finetune.rows import Encoder, TrainRows, without_bad_rows
from hftl.frozen.augmented import ViewRows
from hftl.lifetime import is_running
from hftl.parallel import Process
from hftl.scout.cost import measured_speed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes decode on Linux alone")

# Each start of an interpreter costs seconds; HFTL_LONG=1 starts some more.
only_long = pytest.mark.skipif(not os.environ.get("HFTL_LONG"), reason="takes seconds; HFTL_LONG=1 runs it")

RNG = np.random.default_rng(5)


def picture(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    """Pictures of many kinds, sizes and modes."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        picture(20, 20),
        picture(300, 200, "JPEG"),
        picture(31, 77, "JPEG", "L"),
        picture(64, 40, "JPEG", exif=turned),
        picture(50, 50, "WEBP"),
        picture(18, 25, mode="P"),
        picture(18, 25, mode="1"),
        picture(40, 60, "TIFF", "CMYK"),
        picture(9, 14, "GIF", "P"),
    ]


def until_ready(decoder: Decoder) -> Decoder:
    """A decoder once its processes take rows."""
    decoder([picture(8, 8)], ["sample"])
    while not decoder.is_ready:
        assert decoder.refusal is None
        time.sleep(0.1)
    return decoder


def refusal_of(backbone: Any) -> str:
    """Why other processes cannot be used, once that is known."""
    decoder = Decoder(backbone, 1)
    assert len(decoder([picture(8, 8)], ["sample"])) == 1
    while decoder.refusal is None:
        assert not decoder.is_ready
        time.sleep(0.1)
    decoder.close()
    # They are not tried again.
    assert len(decoder([picture(8, 8)], ["sample"])) == 1
    return decoder.refusal


def same(one: Sequence[Encoded], other: Sequence[Encoded]) -> bool:
    """Whether rows are equal to the bit, in memory too."""
    return all(
        a.cost == b.cost
        and a.inputs.keys() == b.inputs.keys()
        and all(
            type(value) is type(b.inputs[name]) and same_numbers(np.asarray(value), np.asarray(b.inputs[name]))
            for name, value in a.inputs.items()
        )
        for a, b in zip(one, other, strict=True)
    )


def same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    layout = one.dtype, one.shape, one.strides
    return layout == (other.dtype, other.shape, other.strides) and one.tobytes() == other.tobytes()


def processes_of(parent: int) -> list[int]:
    """The processes that one started, and those that these started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] not in "ZX":
            found += [int(status.parent.name), *processes_of(int(status.parent.name))]
    return found


def workers_of(parent: int) -> list[int]:
    """Of these the ones that decode, which started none themselves."""
    return [each for each in processes_of(parent) if not processes_of(each)]


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight cores, without a quota; where one would stand."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr("hftl.control_groups.ROOT", tmp_path)
    monkeypatch.setattr("hftl.control_groups.OWN", tmp_path / "own")
    monkeypatch.setattr(cores, "_share", None)
    return tmp_path / "cpu.max"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ImageBackbone:
    return small.image_backbone(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def kept(vit: ImageBackbone) -> Iterator[list[Decoder]]:
    """Decoders of this module, the latest last: a start costs seconds."""
    decoders: list[Decoder] = []
    yield decoders
    for decoder in decoders:
        decoder.close()


@pytest.fixture
def two(vit: ImageBackbone, kept: list[Decoder]) -> Decoder:
    """A decoder whose two processes are ready."""
    if not kept or not kept[-1].is_ready:
        kept.append(until_ready(Decoder(vit, 2)))
    return kept[-1]


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_processes_read_rows_as_threads_do_to_the_bit(vit: ImageBackbone, two: Decoder) -> None:
    contents = pictures()
    names = [f"picture {number}" for number in range(len(contents))]
    expected = vit.encode(contents, names)

    assert same(two(contents, names), expected)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda row: two([contents[row]], [names[row]])[0], range(len(contents))))
    assert same(alone, expected)
    assert two.is_ready

    # Views are drawn by the picture alone, and changes of an epoch by a generator that comes along.
    files = Files(pa.chunked_array([pa.array(contents)]))
    rows = ViewRows(files, RNG.integers(0, 256, (len(contents), 16), dtype=np.uint8), [1, 2], CHANGES)
    views = [two([rows[place]], [rows.name(place)], [rows.change(place)])[0] for place in range(len(rows))]
    assert same(views, [vit.encode([rows.change(p)(rows[p])], [""])[0] for p in range(len(rows))])
    assert not same(views[: len(contents)], expected)

    # A row that is bad is named, and explained, as it is here; the rows after it are read.
    broken = [b"", b"no picture", contents[1][:900], np.zeros(40, dtype=np.uint8).tobytes()]
    for content in broken:
        with pytest.raises(BadRowError) as here:
            vit.encode([content], ["holiday/3.jpg"])
        with pytest.raises(BadRowError) as there:
            two([contents[0], content], ["good", "holiday/3.jpg"])
        assert str(there.value) == str(here.value)
    assert same(two(contents, names), expected)


CHANGES = Augmentation(flip=True, crop=0.5, trivial=True)


def test_training_sees_the_same_batches(vit: ImageBackbone, two: Decoder) -> None:
    data = small.picture_data(26)

    def batches(decoder: Decoder, augmentation: Augmentation) -> list[bytes]:
        encoder = Encoder(vit, data.train)
        encoder.decoder = decoder
        rows = TrainRows(
            encoder, Loss("single_label", 3), Process(torch.device("cpu")), seed=1, batch_size=8, micro_batch=3,
            augmentation=augmentation,
        )  # fmt: skip
        steps = [step for epoch in (0, 1) for step in rows.epoch(epoch)]
        return [
            value.numpy().tobytes() for step in steps for batch in step.micro_batches for value in batch.inputs.values()
        ]

    for augmentation in (Augmentation(), CHANGES):
        assert batches(two, augmentation) == batches(Decoder(vit, 0), augmentation)
    assert two.is_ready


def test_a_number_of_processes_that_is_none_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, data = tiny.save("vit", tmp_path / "model"), write_images(tmp_path / "data", per_class=2)
    monkeypatch.setenv("HFTL_DECODE_PROCESSES", "many")
    assert "HFTL_DECODE_PROCESSES='many': give the number" in cli.refused(
        "run", "--backbone", model, "--data", data, "--out", tmp_path / "no"
    )


@only_long
def test_a_command_gives_the_same_with_processes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny.save("vit", tmp_path / "model"), write_images(tmp_path / "data", per_class=5)
    (data / "class0" / "broken.png").write_bytes(b"no picture")
    kept = []
    for number in ("0", "2"):
        monkeypatch.setenv("HFTL_DECODE_PROCESSES", number)
        monkeypatch.setenv("HFTL_CACHE", str(tmp_path / number))
        decoder_of(Pixels()).close()
        out = tmp_path / f"run{number}"
        cli.ok("run", "--backbone", model, "--data", data, "--on-bad-row", "skip", "--out", out)
        kept.append([metrics(out)[what] for what in ("eval", "features", "skipped_rows") if what in metrics(out)])
    assert kept[0] == kept[1]


def test_after_a_bad_row_nothing_decodes_on(tmp_path: Path) -> None:
    model, data = tiny.save("vit", tmp_path / "model"), write_images(tmp_path / "data", per_class=20)
    for broken in (data / "class0").iterdir():
        broken.write_bytes(b"no picture")
    recipe = Recipe(backbone=str(model), data=str(data))
    before = set(threading.enumerate())
    with pytest.raises(BadRowError) as caught:
        features(recipe, quiet=True)
    # While the error is still in somebody's hands, as in a notebook.
    assert caught.value.row
    assert set(threading.enumerate()) <= before


# ── what other processes cannot do ───────────────────────────────────────────────────────────────────────────────────


def test_a_backbone_that_cannot_leave_its_process_is_read_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(Pixels):
        pass

    assert "cannot be handed to another process" in refusal_of(Here())
    monkeypatch.setattr(Scaled, "scale", 0.5)
    assert "its 'pixels' is not the same in another process" in refusal_of(Scaled())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended at its start" in refusal_of(Pixels())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be handed to another process" in refusal_of(Pixels())


@only_long
def test_a_backbone_that_starts_threads_is_read_by_threads() -> None:
    assert "starts threads" in refusal_of(WithThreads())


@pytest.mark.usefixtures("eight_cores")
def test_what_this_process_alone_can_read_or_warns_of_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # Waiting is taken to cost enough at once.
    monkeypatch.setattr("hftl.decoding.choice.SECONDS_TO_START", 0.0)
    monkeypatch.setattr("hftl.decoding.decoder.WINDOW", 0.0)
    before = set(processes_of(os.getpid()))
    backbone = Odd()
    decoder = decoder_of(backbone)
    small_ones = [picture(12, 12) for _ in range(5)]

    def worked() -> list[Encoded]:
        rows = list(decoder.ahead(lambda content: decoder([content], [""])[0], small_ones, 2))
        until_ready(decoder)
        return rows

    # In whatever way numbers lie in memory, they arrive as they were.
    expected = backbone.encode(small_ones, [""] * 5)
    assert same(worked(), expected)
    assert same(decoder(small_ones, [""] * 5), expected)
    large = picture(60, 60)
    for _ in range(12):
        with pytest.warns(UserWarning, match="holiday is large"):
            rows = decoder([large], ["holiday"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(rows, backbone.encode([large], ["holiday"]))
    # That a row warns is no reason to ask no more.
    assert decoder.is_ready
    assert same(decoder(small_ones, [""] * 5), expected)

    # Where all of them are killed, none of them refused anything.
    for each in set(workers_of(os.getpid())) - before:
        os.kill(each, signal.SIGKILL)
    for _ in range(12):
        assert same(decoder(small_ones[:1], [""]), expected[:1])
    assert not decoder.is_ready
    assert decoder.refusal is None

    # Another backbone ends what is left of them; work that goes on with this one starts others.
    decoder_of(Pixels())
    assert set(processes_of(os.getpid())) <= before
    assert same(worked(), expected)
    assert same(decoder(small_ones, [""] * 5), expected)

    # Processes that cannot read what this one reads are not asked for ever.
    cut = picture(24, 24, "JPEG")[:-100]
    with pytest.raises(BadRowError):
        decoder([cut], ["cut"])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for _ in range(10):
        assert same(decoder([cut], ["cut"]), backbone.encode([cut], ["cut"]))
    assert not decoder.is_ready
    assert "could not read" in (decoder.refusal or "")
    decoder.close()


# ── processes that end ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_does_not_share_the_processes(two: Decoder) -> None:
    content = picture(20, 20)
    expected = two([content], [""])
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        told = b"no"
        try:
            # Its sockets would get the answers of the other.
            told = b"same" if same(two([content], [""]), expected) and not two.is_ready else b"other"
        finally:
            os.write(writing, told)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"same"
    os.close(reading)
    os.close(writing)
    assert same(two([content], [""]), expected)


def test_processes_that_are_killed_cost_no_row_and_idle_ones_end(
    vit: ImageBackbone, two: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = pictures() * 6
    expected = vit.encode(contents, [""] * len(contents))
    killed: list[int] = []
    rows: list[Encoded] = []
    for row in ahead(lambda content: two([content], [""])[0], contents, 3):
        rows.append(row)
        if len(rows) == 5:
            killed = workers_of(os.getpid())[:1]
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert same(rows, expected)
    assert two.is_ready
    assert same(two(contents[:9], [""] * 9), expected[:9])

    # In a notebook they would outlive the run.
    monkeypatch.setattr("hftl.decoding.pool.IDLE_SECONDS", 0.0)
    while two.is_ready or processes_of(os.getpid()):
        time.sleep(0.1)
    assert two.refusal is None
    assert same(two(contents[:9], [""] * 9), expected[:9])
    two.close()


HOLDER = """
print("once", flush=True)
import io, time
from PIL import Image
from pixels import Pixels
from hftl.decoding import Decoder
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
decoder = Decoder(Pixels(), 1)
decoder([file.getvalue()], [""])
while not decoder.is_ready:
    time.sleep(0.1)
print("ready", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    decoder([file.getvalue()], [""])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=only_long)])
def test_processes_end_with_a_script_that_has_no_guard_and_leave_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = set(Path("/dev/shm").iterdir())
    (tmp_path / "script.py").write_text(HOLDER)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    holder = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert holder.stdout is not None
    # The script is not run again in the processes, as those of multiprocessing would.
    assert [holder.stdout.readline(), holder.stdout.readline()] == ["once\n", "ready\n"]
    started = processes_of(holder.pid)
    assert len(started) == 2

    if number == signal.SIGINT:
        # The keys reach every process of a terminal.
        os.killpg(holder.pid, number)
    else:
        holder.send_signal(number)
    holder.communicate()

    deadline = time.monotonic() + 20
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [each for each in started if is_running(each)]
    assert set(Path("/dev/shm").iterdir()) <= before


# ── how many ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_cores_are_used_than_a_process_may(eight_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.usable_cores() == 8
    for quota, allowed in {"max 100000": 8, "350000 100000": 3, "50000 100000": 1, "1600000 100000": 8}.items():
        eight_cores.write_text(f"{quota}\n")
        assert cores.usable_cores() == allowed
    eight_cores.write_text("600000 100000\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores.usable_cores() == 3
    for share, allowed in {8: 3, 2: 2}.items():
        cores.take_share(share)
        assert cores.usable_cores() == Decoder(Pixels()).threads == allowed


class Taken(TextBackbone):
    """Fails where two threads tokenise at once, as fast tokenizers do now and then."""

    taken = threading.Lock()

    def encode(self, rows: Sequence[Any], names: Sequence[str]) -> list[Encoded]:
        if not self.taken.acquire(blocking=False):
            raise RuntimeError("Already borrowed")
        try:
            time.sleep(0.001)
            return super().encode(rows, names)
        finally:
            self.taken.release()


@pytest.mark.usefixtures("eight_cores")
def test_texts_are_tokenised_by_one_thread_at_a_time(tmp_path: Path) -> None:
    backbone = Taken(local_source(tiny.save("bert", tmp_path / "bert")), None)
    data = small.vectors_data(["a few words"] * 40, [0, 1] * 20, ["a", "b"])
    left, bad = without_bad_rows(backbone, data)
    assert (len(left.train), bad) == (40, [])
    target = Target(backbone, backbone.config("single_label", ["a", "b"]))
    model, _ = target.build()
    assert measured_speed(model, target, data.train.inputs, what="these", equal_lengths=False) > 0


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def choice(stretches: int, **what: float) -> Choice:
    made = Choice(16)
    for _ in range(stretches):
        made.saw(Stretch(**({"seconds": 1.0, "rows": 100, "decoding": 1.4} | what)))  # type: ignore[arg-type]
    return made


def test_processes_start_when_waiting_on_idle_cores_has_cost_as_much() -> None:
    # Threads that Python's lock holds to two of sixteen cores, before a forward that takes a tenth of the time.
    held_back: Callable[[int], Choice] = partial(choice, waited=0.9, busy=2.0)
    assert [held_back(seconds).pays for seconds in range(1, 7)] == [
        0.9 * s * 14 / 16 >= SECONDS_TO_START for s in range(1, 7)
    ]
    assert held_back(6).pays
    # 14 ms a picture against 1 ms: as many as there are cores. Where the forward takes half, three do.
    assert held_back(6).count == 16
    assert choice(9, waited=0.5, busy=2.0).count == 5

    # All cores decode, or the forward is the slower half, or there is one core only.
    assert not choice(20, waited=0.9, busy=16.0).pays
    assert not choice(20, waited=0.0, busy=2.0).pays
    alone = Choice(1)
    alone.saw(Stretch(rows=10, decoding=9.0, waited=9.0, seconds=10.0, busy=1.0))
    assert not alone.pays
