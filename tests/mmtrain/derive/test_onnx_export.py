"""Graphs in ONNX answer as the model does, whole or cut; what is no graph is refused."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch

from mmtrain.bundle import load_bundle
from mmtrain.derive.onnx_export import OnnxError, OnnxFile, example_batch, export_model, export_onnx
from mmtrain.predict.predictor import Predictor
from pipelines.errors import UnknownNameError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_masked import picture, save_shades


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    folder = tmp_path_factory.mktemp("shades")
    save_shades(folder)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def written(predictor, tmp_path_factory) -> OnnxFile:
    (file,) = export_onnx(predictor, out=tmp_path_factory.mktemp("onnx"))
    return file


def test_the_graph_answers_as_the_masked_model_for_any_number_of_examples(predictor, written):
    assert written.difference < 1e-5
    session = onnxruntime.InferenceSession(str(written.path))
    for size in (1, 7):
        inputs, lengths = example_batch(predictor, "shades", num_examples=size)
        feeds = {"inputs": inputs.numpy(), "input_lengths": lengths.numpy()}
        (found,) = session.run(["logits"], feeds)
        with torch.inference_mode():
            model = predictor.model
            expected = model(
                task="shades", inputs=inputs, input_lengths=lengths, targets=None
            ).logits
        assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_a_cut_models_graph_is_smaller(predictor, written, tmp_path):
    small = predictor.for_subtasks(
        ["deep"], unlabelled={"shades": [picture(number)[0] for number in range(8)]}
    )
    (file,) = export_onnx(small, out=tmp_path)
    assert file.num_bytes < written.num_bytes


def test_a_graph_that_answers_otherwise_is_refused_and_removed(predictor, tmp_path, monkeypatch):
    other = copy.deepcopy(predictor)
    monkeypatch.setattr("mmtrain.derive.onnx_export.TOLERANCE", -1.0)
    with pytest.raises(OnnxError, match="differ"):
        export_onnx(other, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_decodes_is_refused(tmp_path):
    predictor = Predictor(load_bundle(example_bundle(tmp_path / "bundle")))
    with pytest.raises(OnnxError, match=r"names decodes token after token.*shades"):
        export_onnx(predictor, out=tmp_path / "onnx", tasks=["names"])
    with pytest.raises(UnknownNameError):
        export_onnx(predictor, out=tmp_path / "onnx", tasks=["shade"])
    assert not (tmp_path / "onnx").exists()


def test_the_bundle_that_is_exported_is_the_same_with_its_masks(predictor, tmp_path):
    folder = tmp_path / "run" / "bundle"
    bundle = save_shades(tmp_path / "run")
    assert export_model(str(folder), out=tmp_path / "out", graphs=False) == ()
    again = load_bundle(tmp_path / "out" / "bundle")
    assert again.digest == bundle.digest
    assert again.card.pruning == bundle.card.pruning
