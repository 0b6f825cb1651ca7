"""Image columns through real architectures with random weights, and ONNX files."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer import InputError, TensorArray

transformers = pytest.importorskip("transformers")
N = 10


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(N, 3, 32, 32)).astype("float32")


@pytest.fixture
def ddf(images):
    frame = pd.DataFrame({"id": range(N), "pixels": TensorArray.from_numpy(images)})
    return dd.from_pandas(frame, npartitions=2)


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, image_size=32, patch_size=16, num_labels=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


@pytest.mark.parametrize("build", [vit, resnet])
def test_image_classifiers(ddf, images, build):
    torch.manual_seed(0)
    model = build().eval()
    pred = ddf.infer.predict(model, columns="pixels", output="logits", batch_size=3)
    with torch.inference_mode():
        expected = model(torch.tensor(images)).logits.numpy()
    assert pred["logits"].dtype.shape == (4,)
    np.testing.assert_allclose(pred["logits"].infer.to_numpy(), expected, atol=1e-5)


def test_a_directory_of_a_vision_model(ddf, images, tmp_path):
    torch.manual_seed(0)
    model = vit().eval()
    model.save_pretrained(tmp_path / "vit")
    pred = ddf.infer.predict(
        tmp_path / "vit", columns="pixels", output={"logits": "scores"}
    )
    with torch.inference_mode():
        expected = model(torch.tensor(images)).logits.numpy()
    np.testing.assert_allclose(pred["scores"].infer.to_numpy(), expected, atol=1e-5)


def test_classes_by_postprocess(ddf):
    pred = ddf.infer.predict(
        vit(),
        columns="pixels",
        postprocess=lambda output, frame: output.logits.argmax(dim=1),
        meta={"label": "int64"},
    )
    assert set(pred["label"].compute()) <= set(range(4))


@pytest.fixture
def onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "double.onnx")
    return tmp_path / "double.onnx"


def test_an_onnx_file(onnx_file):
    frame = pd.DataFrame(np.arange(8.0).reshape(4, 2), columns=["a", "b"])
    ddf = dd.from_pandas(frame, npartitions=2)
    pred = ddf.infer.predict(onnx_file, columns=["a", "b"], output="y")
    np.testing.assert_allclose(pred["y"].infer.to_numpy(), 2 * frame.to_numpy())
    named = ddf.infer.predict(onnx_file, columns={"x": ["a", "b"]}, output=["u", "v"])
    assert named["v"].compute().tolist() == (2 * frame.b).tolist()


def test_an_onnx_input_that_is_not_mapped_is_named(onnx_file):  # ON-11
    ddf = dd.from_pandas(pd.DataFrame({"a": [1.0], "b": [2.0]}), npartitions=1)
    with pytest.raises(InputError, match=r"z|x"):
        ddf.infer.predict(onnx_file, columns={"z": ["a", "b"]})
