"""Peak memory of a language model of about 1 B parameters as a frozen backbone, in shards.

    python benchmarks/llm_memory.py
    python benchmarks/llm_memory.py --layers 4 --rows 32

Makes a random Llama checkpoint in a temporary folder (2 GB in bfloat16, 4 GB in float32; removed afterwards), and asks
for the features of a few texts in processes of their own. Reported is how far the resident memory of each rose above
what it was with all libraries imported, as a multiple of the weights in the dtype that was asked for. Mapped pages of
the files count. Linux only, because peaks are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import tell_machine

WORDS = ["the", "a", "one", "two", "red", "blue", "cat", "dog", "bird", "sat", "ran", "flew", "over", "under", "mat"]
DTYPES = {"bf16": "bfloat16", "no": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="16 make 1.04 B parameters")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--precision", choices=DTYPES, default="bf16", help="what weights are asked for in")
    parser.add_argument("--shard", default="200MB", help="largest size of a shard")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder) / "texts.csv", arguments.rows)
        print(f"{'checkpoint':12}{'asked':10}{'what':14}{'weights MB':>10}{'peak MB':>9}{'ratio':>8}{'seconds':>9}")
        for kept in ("bfloat16", "float32"):
            checkpoint = Path(folder) / kept
            parameters = make_checkpoint(checkpoint, kept, arguments.layers, arguments.shard)
            for what in ("transformers", "features", "run"):
                report(checkpoint, texts, arguments.precision, what, parameters)
            for file in checkpoint.iterdir():
                file.unlink()


def make_checkpoint(folder: Path, dtype: str, layers: int, shard: str) -> int:
    """Write a random Llama, lm_head tied to the embeddings and no padding token; how many parameters it has."""
    script = f"""
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32000, hidden_size=2048, num_hidden_layers={layers}, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=8192, tie_word_embeddings=True, max_position_embeddings=2048, dtype=torch.{dtype},
)
torch.set_default_dtype(torch.{dtype})
model = LlamaForCausalLM(config)
print(sum(parameter.numel() for parameter in model.parameters()))
model.save_pretrained({str(folder)!r}, max_shard_size={shard!r})
vocabulary = {{word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *{WORDS}])}}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=128
).save_pretrained({str(folder)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def write_texts(file: Path, rows: int) -> Path:
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(3, 60))) for _ in range(rows)]
    lines = [f"{text},{'yes' if row % 2 else 'no'}" for row, text in enumerate(texts)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    return file


def report(checkpoint: Path, texts: Path, precision: str, what: str, parameters: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HFTL_CACHE": cache}
        command = [sys.executable, __file__, "--one", str(checkpoint), str(texts), precision, what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    weights = parameters * (2 if precision == "bf16" else 4) / 1e6
    row = f"{checkpoint.name:12}{DTYPES[precision]:10}{what:14}{weights:>10,.0f}{found['peak']:>9,.0f}"
    print(f"{row}{found['peak'] / weights:>8.2f}{found['seconds']:>9.1f}", flush=True)


def one(checkpoint: str, texts: str, precision: str, what: str) -> None:
    """In a process of its own: how far memory rises while one thing is done."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.models.llama import modeling_llama  # noqa: F401

    import hftl
    from hftl import pipeline  # noqa: F401

    before, started = resident("VmRSS"), time.perf_counter()
    if what == "transformers":
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=getattr(torch, DTYPES[precision]))
        with torch.inference_mode():
            model(input_ids=torch.arange(3, 20)[None])
    else:
        recipe = hftl.Recipe(backbone=checkpoint, data=texts, method=hftl.Head(mixed_precision=precision, folds=2))
        if what == "features":
            hftl.features(recipe, quiet=True)
        else:
            with tempfile.TemporaryDirectory() as out:
                hftl.run(recipe, out=out, quiet=True, report=False)
    seconds = time.perf_counter() - started
    print(json.dumps({"peak": (resident("VmHWM") - before) / 1e6, "seconds": seconds}))


def resident(field: str) -> int:
    """Bytes that this process has in memory now (``VmRSS``), or had at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


if __name__ == "__main__":
    tell_machine()
    main()
