"""Pictures are decoded by other processes as by threads: the same numbers, the same errors, nothing left over."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
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
from pixels import Pixels, Scaled, Warns, WithThreads
from runs import Cli, metrics, write_images

from hftl.ahead import ahead
from hftl.backbones.protocol import Encoded
from hftl.backbones.vision import ImageBackbone
from hftl.data import Files
from hftl.data.augment import Augmentation
from hftl.decoding import Decoder, decoder_of
from hftl.decoding.choice import SECONDS_TO_START, Choice, Stretch
from hftl.errors import BadRowError
from hftl.finetune.losses import Loss
from hftl.finetune.rows import Encoder, TrainRows
from hftl.frozen.augmented import ViewRows
from hftl.lifetime import is_running
from hftl.parallel import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes decode on Linux alone")

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
    return decoder.refusal


def same(one: Sequence[Encoded], other: Sequence[Encoded]) -> bool:
    """Whether rows are equal to the bit, in memory too."""
    return all(
        a.cost == b.cost
        and a.inputs.keys() == b.inputs.keys()
        and all(
            torch.equal(value, b.inputs[name]) and value.stride() == b.inputs[name].stride()
            for name, value in a.inputs.items()
        )
        for a, b in zip(one, other, strict=True)
    )


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
    monkeypatch.setenv("HFTL_DECODE_PROCESSES", "many")
    assert "HFTL_DECODE_PROCESSES='many': give the number" in cli.refused(
        "run", "--backbone", model, "--data", data, "--out", tmp_path / "no"
    )


# ── what other processes cannot do ───────────────────────────────────────────────────────────────────────────────────


def test_a_backbone_that_cannot_leave_its_process_is_read_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(Pixels):
        pass

    assert "cannot be handed to another process" in refusal_of(Here())
    monkeypatch.setattr(Scaled, "scale", 0.5)
    assert "gives other numbers" in refusal_of(Scaled())
    assert "starts threads" in refusal_of(WithThreads())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended at its start" in refusal_of(Pixels())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be handed to another process" in refusal_of(Pixels())


def test_what_this_process_alone_can_read_or_warns_of_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small_ones = picture(60, 60), [picture(12, 12) for _ in range(5)]
    with until_ready(Decoder(Warns(), 1)) as decoder:
        rows = decoder(small_ones, [""] * 5)
        assert same(rows, Pixels().encode(small_ones, [""] * 5))
        # What is not contiguous in memory arrives as it was.
        assert not rows[0].inputs["pixels"].is_contiguous()
        with pytest.warns(UserWarning, match="holiday is large"):
            rows = decoder([large], ["holiday"])
        assert same(rows, Pixels().encode([large], ["holiday"]))
        cut = picture(40, 40, "JPEG")[:-100]
        with pytest.raises(BadRowError):
            decoder([cut], ["cut"])
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        for _ in range(10):
            assert same(decoder([cut], ["cut"]), Pixels().encode([cut], ["cut"]))
        # Processes that cannot read what this one reads are not asked for ever.
        assert not decoder.is_ready
        assert "could not read" in (decoder.refusal or "")


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


def test_processes_that_are_killed_cost_no_row(vit: ImageBackbone, two: Decoder) -> None:
    contents = pictures() * 6
    expected = vit.encode(contents, [""] * len(contents))
    workers = [each for each in processes_of(os.getpid()) if not processes_of(each) and is_running(each)]
    killed = 0
    rows: list[Encoded] = []
    for row in ahead(lambda content: two([content], [""])[0], contents, 3):
        rows.append(row)
        if len(rows) in (5, 20) and killed < len(workers):
            os.kill(workers[killed], signal.SIGKILL)
            killed += 1
    assert killed == 2
    assert same(rows, expected)
    assert same(two(contents[:9], [""] * 9), expected[:9])


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
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
