"""What is refused of the files that a run could start from, and how that is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTForImageClassification

from mmtrain.start.source import read_source
from mmtrain.start.vit import InitError
from tests.mmtrain.example_vit import random_vit, to_timm


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    return random_vit()


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    vit.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vit.pth"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InitError, match=r"save_file\(state_dict"):
            read_source(str(source))


def test_a_file_cut_short_is_refused_by_name(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InitError, match=r"model\.safetensors cannot be read"):
        read_source(str(file))


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    index = {"weight_map": {"vit.layernorm.weight": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InitError, match=r"\.\./other\.safetensors"):
        read_source(str(tmp_path))


def test_another_kind_of_transformer_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "swin"}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InitError, match="model_type 'swin'"):
        read_source(str(tmp_path))


def test_blocks_with_parts_that_ours_have_not_are_refused(vit, tmp_path):
    scaled = to_timm(vit) | {"blocks.0.ls1.gamma": torch.ones(16)}
    save_file(scaled, tmp_path / "vit.safetensors")
    with pytest.raises(InitError, match=r"no plain ViT.*ls1\.gamma"):
        read_source(str(tmp_path / "vit.safetensors"))
