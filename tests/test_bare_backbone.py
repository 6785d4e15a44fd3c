"""A backbone that answers `hftl.Backbone`'s questions with nothing of hftl's own classes can do all that others do."""

from __future__ import annotations

import json
from pathlib import Path

import runs
from fake_plugins import Site

PLUGIN = '''
import io, json
from pathlib import Path

import hftl


@hftl.hookimpl
def hftl_register_backbones(register):
    register(hftl.BackboneSpec("stripes", "image", lambda options: backbone()))


@hftl.hookimpl
def hftl_resolve_backbone(ref):
    config = Path(ref) / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("model_type") == "stripes":
        return hftl.BackboneSpec(ref, "image", lambda options: backbone(Path(ref)))
    return None


def backbone(folder=None):
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from torch import nn
    from transformers import PreTrainedConfig
    from transformers.modeling_outputs import ImageClassifierOutput

    class Config(PreTrainedConfig):
        model_type = "stripes"

    class Model(nn.Module):
        """Means of colours over stripes, through a layer of fixed weights, and a linear head."""

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.body = nn.Linear(12, 16)
            self.head = nn.Linear(16, config.num_labels)
            generator = torch.Generator().manual_seed(0)
            nn.init.normal_(self.body.weight, generator=generator)
            nn.init.zeros_(self.body.bias)

        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=self.head(torch.tanh(self.body(pixel_values))))

        def save_pretrained(self, folder):
            save_file(self.state_dict(), Path(folder) / "model.safetensors")

    class Stripes:
        name, commit, modality, wants = "stripes", None, "image", "file"
        suffixes, pipeline_tag, library = frozenset({".png"}), "image-classification", "stripes"
        max_length, license, pickled, base_reference, notes = None, {}, False, "stripes", ()

        def identity(self):
            return {"stripes": 1}

        def encode(self, rows, names):
            encoded = []
            for row, name in zip(rows, names):
                try:
                    pixels = np.asarray(Image.open(io.BytesIO(row)).convert("RGB").resize((4, 4)), dtype=np.float32)
                except OSError as error:
                    raise hftl.BadRowError(name, "no picture") from error
                means = torch.from_numpy(pixels / 255).mean(0).flatten()
                encoded.append(hftl.Encoded({"pixel_values": means}))
            return encoded

        def collate(self, rows):
            return {"pixel_values": torch.stack([row.inputs["pixel_values"] for row in rows])}

        def probes(self):
            generator = torch.Generator().manual_seed(1)
            return [{"pixel_values": torch.rand(3, 12, generator=generator)} for _ in range(2)]

        def config(self, task, label_names):
            made = Config(id2label=dict(enumerate(label_names)), label2id={n: i for i, n in enumerate(label_names)})
            made.problem_type = "single_label_classification"
            return made

        def build(self, config):
            return Model(config).eval(), {"head.weight", "head.bias"}

        def skeleton(self, config):
            with torch.device("meta"):
                return Model(config)

        def load_trained(self):
            config = Config(**json.loads((folder / "config.json").read_text()))
            model = Model(config)
            model.load_state_dict(load_file(folder / "model.safetensors"))
            return model.eval(), set()

        def weight_files(self):
            return {}

        def save_processor(self, folder):
            (folder / "stripes.json").write_text("{}")

    return Stripes()
'''

SCRIPT = """
import json, sys
import hftl
done = hftl.run(hftl.Recipe(backbone="stripes", data="data", method=hftl.Head(folds=2)), out="run", quiet=True)
rows = hftl.load("run").predict("data")
values = hftl.evaluate("run", "data", quiet=True)
print(json.dumps([done.metrics["eval"]["accuracy"], rows[0], values["accuracy"]]))
"""


def test_a_backbone_by_the_bare_protocol_trains_predicts_evaluates_and_is_pushed_whole(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.install("stripes", PLUGIN)
    runs.write_images(tmp_path / "data")
    trained, first, evaluated = json.loads(site.python(SCRIPT).splitlines()[-1])
    assert trained == 1.0
    assert evaluated == 1.0
    assert first["label"] == "class0"
    assert first["score"] > 0.9
    pushed = site.hftl("push", "run", "me/stripes", "--dry-run")
    assert pushed.returncode == 0, pushed.stderr
    # What the plugin's save_processor wrote goes with the model.
    assert "stripes.json" in pushed.stdout
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "from transformers import" not in card
    assert "the package stripes loads them" in card


VERSIONED = """
import hftl

@hftl.hookimpl
def hftl_register_backbones(register):
    register(hftl.BackboneSpec("unstated", "image", print))
    register(hftl.BackboneSpec("stated", "image", print, feature_version="7"))
"""


def test_a_release_of_a_plugin_forgets_its_features_unless_it_states_their_version(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.install("versioned", VERSIONED)
    ask = (
        "import json\nfrom hftl.plugins.registry import find\nfrom hftl.store.identity import space_id\n"
        "print(json.dumps([space_id({'plugin': find(name).origin}) for name in ('unstated', 'stated')]))"
    )
    first = json.loads(site.python(ask))
    info = tmp_path / "versioned-1.2.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 1.2", "Version: 1.3"))
    second = json.loads(site.python(ask))
    assert first[0] != second[0]
    assert first[1] == second[1]
