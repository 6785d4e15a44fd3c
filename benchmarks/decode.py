"""Pictures decoded and preprocessed in a second: by threads and by processes, one, two and more of each.

    python benchmarks/decode.py [--images 400] [--photos FOLDER] [--counts 1,2] [--backbone REF]

JPEGs of 500×375 (made of the photos given, else of noise with structure), for a ViT at 224 pixels unless a backbone is
named. Every way gives the same numbers to the bit, which is checked. What this process spends on a picture that another
one decodes bounds how many it can take in a second, however many processes there are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from extract_images import jpegs, write_model
from machine import tell_machine

from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.protocol import Encoded
from hftl.decoding import Decoder
from hftl.frozen.extract import DECODED_AHEAD
from hftl.plugins.spec import BackboneOptions


def encoded_by(decoder: Decoder, picture: bytes) -> Encoded:
    return decoder([picture], [""])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--counts", default="1,2")
    parser.add_argument("--backbone")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    encoded = jpegs(arguments.images, arguments.photos)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        spec = hftl_resolve_backbone(arguments.backbone or folder)
        assert spec is not None
        backbone = spec.load(BackboneOptions())
        expected = backbone.encode(encoded[:8], [""] * 8)
        rates: dict[tuple[str, int], float] = {}
        for count in map(int, arguments.counts.split(",")):
            for what in ("threads", "processes"):
                decoder = Decoder(backbone, count if what == "processes" else 0)
                started = time.perf_counter()
                decoder([encoded[0]], [""])
                while what == "processes" and not decoder.is_ready:
                    time.sleep(0.05)
                start = time.perf_counter() - started
                clock, used = -time.perf_counter(), -time.process_time()
                rows = decoder.ahead(partial(encoded_by, decoder), encoded, count, DECODED_AHEAD)
                for place, row in enumerate(rows):
                    if place < len(expected):
                        for name, value in row.inputs.items():
                            assert torch.equal(value, expected[place].inputs[name])
                clock, used = clock + time.perf_counter(), used + time.process_time()
                rates[what, count] = arguments.images / clock
                print(
                    f"{count:3} {what:9}  {rates[what, count]:8.1f} images/s, "
                    f"{used / arguments.images * 1e3:6.2f} ms of this process's CPU time a picture"
                    + (f"; ready after {start:.1f} s" if what == "processes" else ""),
                    flush=True,
                )
                decoder.close()
        counts = sorted({count for _, count in rates})
    for count in counts:
        print(
            f"{count} processes: {rates['processes', count] / rates['processes', counts[0]]:.2f} × {counts[0]}, "
            f"{rates['processes', count] / rates['threads', count]:.2f} × {count} threads"
        )
    print(f"{os.cpu_count()} cores, {os.getloadavg()[0]:.1f} waiting for them on average in the last minute")


if __name__ == "__main__":
    tell_machine()
    main()
