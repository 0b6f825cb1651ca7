"""What users give, recognised; and what is refused, in time and in words."""

from __future__ import annotations

import functools
import gc
import json
import os
import pickle
import struct
import threading

import dask
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import NotAModelError, recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.source import ModelSource
from dask_infer.model.store.blob_store import Store, default_store, read_blob


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    with dask.config.set({"infer.store.path": str(tmp_path / "own-store")}):
        yield tmp_path / "own-store"


class Net(torch.nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.layer = torch.nn.Linear(width, 64)

    def forward(self, x):
        return self.layer(x)


class Callable:
    def __call__(self, batch):
        return batch


def double(batch):
    return 2 * batch


# Objects


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        (Net(), "module", "Net"),
        (LinearRegression(), "estimator", "LinearRegression"),
        (StandardScaler(), "estimator", "StandardScaler"),
        (Callable, "factory", "Callable"),
        (Net, "factory", "Net"),
        (LinearRegression, "factory", "LinearRegression"),
        (Callable(), "callable", "Callable"),
        (double, "callable", "double"),
        (lambda batch: batch, "callable", "lambda"),
        (functools.partial(double), "callable", "double"),
        (np.exp, "callable", "exp"),
        (ModelSource.from_module(Net()), "module", "Net"),
        (ModelSource.from_estimator(Callable()), "estimator", "Callable"),
        (ModelSource.from_factory(Net, 3), "factory", "Net"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objects_are_taken_as_what_they_are(model, kind, name):
    recognised = recognise(model)
    spec = recognised.spec
    assert (spec.kind, spec.name) == (kind, name)
    assert spec.path is None
    recognised.snapshot()
    assert load(spec).spec is spec


def test_live_is_what_may_be_looked_at():
    model, estimator = Net(), LinearRegression()
    assert recognise(torch.compile(model, backend="eager")).live is model
    assert recognise(estimator).live is estimator
    assert recognise(double).live is double
    assert recognise(ModelSource.from_factory(Net, 3)).live().layer.in_features == 3


def test_factories_that_build_modules_are_known():
    assert recognise(Net).interface == "tensor"
    assert recognise(Callable).interface == "numpy"
    source = ModelSource.from_factory(double, 1)
    assert recognise(source).interface == "numpy"


def test_classes_are_not_built_here():  # DI-01
    class Never:
        def __init__(self):
            pytest.fail("built on the client")

    recognise(Never).snapshot()


def test_bytes_are_those_of_tensors_shared_ones_once():
    model = Net()
    model.again = model.layer
    assert recognise(model).spec.nbytes == 4 * (64 * 64 + 64)
    assert recognise(Net).spec.nbytes == 0


def test_equal_models_have_equal_keys_and_kinds_differ():  # SP-06
    def key(model):
        return recognise(model).spec.key

    model = Net()
    same = pickle.loads(pickle.dumps(model))
    assert key(model) == key(same) == key(model.eval())
    assert key(model) == key(ModelSource.from_module(model))
    assert key(model) != key(Net())
    one, two = (ModelSource.from_factory(Net, n) for n in (1, 2))
    assert len({key(one), key(two), key(Net)}) == 3


def test_model_is_taken_as_it_is_at_the_call():
    model = Net()
    recognised = recognise(model)
    recognised.snapshot()
    before = model.layer.bias.detach().clone()
    torch.nn.init.zeros_(model.layer.bias)
    assert torch.equal(read_blob(recognised.spec.blob).layer.bias, before)


def test_spec_is_small_and_nothing_is_written_before_the_snapshot(own_store):  # DI-03
    recognised = recognise(Net(1024))
    assert not own_store.exists()
    assert len(pickle.dumps(recognised.spec)) < 1000
    recognised.snapshot()
    recognised.snapshot()
    assert default_store().path(recognised.spec.key).exists()


def test_entry_is_held_as_long_as_the_spec_lives(own_store):  # DI-21
    recognised = recognise(Net())
    recognised.snapshot()
    spec = recognised.spec
    del recognised
    small = Store(own_store, 20_000)
    os.utime(small.path(spec.key), times=(0, 0))
    small.write("other", lambda path: path.write_bytes(bytes(15_000)))
    assert small.path(spec.key).exists()
    key = spec.key
    del spec
    gc.collect()
    small.write("another", lambda path: path.write_bytes(bytes(15_000)))
    assert not small.path(key).exists()


# Compilation


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"backend": "eager"}, {"backend": "eager"}),
        (
            {"backend": "eager", "dynamic": True, "fullgraph": True},
            {"backend": "eager", "dynamic": True, "fullgraph": True},
        ),
        ({"backend": lambda graph, inputs: graph}, {}),
    ],
    ids=["backend", "flags", "own backend"],
)
def test_compilation_is_unwrapped_and_remembered(arguments, found):  # DI-23
    model = Net()
    recognised = recognise(torch.compile(model, **arguments))
    assert dict(recognised.spec.compile) == found
    assert recognised.spec.key == recognise(model).spec.key
    assert recognise(model).spec.compile is None
    model.compile(**arguments)
    assert dict(recognise(model).spec.compile) == found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"mode": "max-autotune"}, {"options": {"max_autotune": True}}],
    ids=["default", "mode", "options"],
)
def test_settings_of_inductor_are_read_back(arguments):
    spec = recognise(torch.compile(Net(), **arguments)).spec
    assert dict(spec.compile) == arguments
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec)


def test_wrapper_of_data_parallel_is_taken_off():
    model = Net()
    assert recognise(torch.nn.DataParallel(model)).live is model


# Programs of this process


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_are_stored_as_files():
    net, x = Net(), torch.ones(2, 64)
    rows = ({0: torch.export.Dim("rows")},)
    exported = recognise(torch.export.export(net, (x,), dynamic_shapes=rows))
    script = recognise(torch.jit.script(net))
    assert (exported.spec.kind, script.spec.kind) == ("exported", "torchscript")
    for recognised in (exported, script):
        output = load(recognised.spec).call((torch.ones(3, 64),), {})
        assert torch.allclose(output, net(torch.ones(3, 64)))


# Refused objects


@pytest.mark.parametrize(
    "model", [None, 3, [1], {"a": 1}, object()], ids=lambda model: type(model).__name__
)
def test_what_is_no_model_lists_what_is(model):
    with pytest.raises(NotAModelError, match=r"no model; pass a torch module, a path"):
        recognise(model)
    with pytest.raises(TypeError):
        recognise(model)


def test_unpicklable_parts_are_named_at_the_call():
    model = Net()
    model.lock = threading.Lock()
    with pytest.raises(ModelLoadError, match=r"holds a lock \(lock\).*from_factory"):
        recognise(model)


def test_models_without_weights_are_refused():
    with pytest.raises(ModelLoadError, match=r"lazy layers.*call it on one batch"):
        recognise(torch.nn.LazyLinear(2))
    with pytest.raises(ModelLoadError, match=r"meta device.*from_factory"):
        recognise(Net().to("meta"))


def test_sources_check_what_they_are_given():
    for source in (ModelSource.from_module(3), ModelSource.from_factory("Net")):
        with pytest.raises(NotAModelError, match=r"ModelSource\.from_.* takes a"):
            recognise(source)


# Files


def program(path):
    torch.export.save(torch.export.export(Net(), (torch.ones(2, 64),)), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One of each kind of model file."""
    folder = tmp_path_factory.mktemp("files")
    program(folder / "exported.pt2")
    torch.save(Net(), folder / "pickled.pt")
    torch.save(Net(), folder / "old.pth", _use_new_zipfile_serialization=False)
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2])
        for name in "xy"
    )
    graph = onnx.helper.make_graph(nodes, "graph", [x], [y])
    onnx.save(onnx.helper.make_model(graph), folder / "graph.onnx")
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("exported.pt2", "exported"),
        ("pickled.pt", "torchscript"),
        ("old.pth", "torchscript"),
        ("graph.onnx", "onnx"),
    ],
)
def test_files_are_recognised_by_their_names(files, name, kind, own_store):
    path = files / name
    spec = recognise(ModelSource.from_path(path, trust=True)).spec
    assert (spec.kind, spec.name, spec.trust) == (kind, path.stem, True)
    assert spec.path == os.path.realpath(path)
    assert spec.nbytes == path.stat().st_size
    assert not own_store.exists()


def test_links_lead_to_one_key(files, tmp_path, monkeypatch):
    (tmp_path / "link.onnx").symlink_to(files / "graph.onnx")
    monkeypatch.chdir(files)
    specs = [
        recognise(path).spec
        for path in ("graph.onnx", str(files / "graph.onnx"), tmp_path / "link.onnx")
    ]
    assert specs[0] == specs[1] == specs[2]


def test_changed_file_is_another_model(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(Net(), path)

    def key():
        return recognise(ModelSource.from_path(path, trust=True)).spec.key

    first = key()
    assert key() == first
    os.utime(path, times=(0, 0))
    second = key()
    torch.save(Net(), path)
    assert len({first, second, key()}) == 3


def test_files_that_can_run_code_need_trust(files):
    with pytest.raises(ModelLoadError, match=r"from_path\(path, trust=True\)"):
        recognise(files / "pickled.pt")


def test_nothing_is_unpickled_here(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "bomb.pt"
    torch.save(Bomb(), path)
    recognise(ModelSource.from_path(path, trust=True)).snapshot()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("missing/model.pt2", "check the path"),
        ("bert-base-uncased", "snapshot_download"),
        ("org/name", "snapshot_download"),
        ("s3://bucket/model.pt2", "download it"),
    ],
)
def test_missing_paths_are_named(name, hint):
    with pytest.raises(ModelLoadError, match=f"{name}.*{hint}"):
        recognise(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("w.safetensors", r"from_factory\(build, weights=path\)"),
        ("m.pkl", "pass the object"),
        ("m.txt", "modules.json"),
        ("m", "modules.json"),
    ],
)
def test_files_of_other_kinds_say_what_to_do(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=rf"no model that can be loaded.*{hint}"):
        recognise(tmp_path / name)


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "m.onnx"])
@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"PK\x03\x04 cut"])
def test_damaged_files_are_refused_early(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"fetch or save the model again"):
        recognise(ModelSource.from_path(tmp_path / name, trust=True))


@pytest.mark.parametrize("name", ["exported.pt2", "pickled.pt", "graph.onnx"])
def test_cut_off_files_are_refused_early(files, tmp_path, name):
    data = (files / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelLoadError, match="fetch or save the model again"):
        recognise(ModelSource.from_path(tmp_path / name, trust=True))


# Weights of factories


def test_weights_count_and_are_found(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(Net(3).state_dict(), path)
    source = ModelSource.from_factory(Net, 3, weights=path)
    recognised = recognise(source)
    spec = recognised.spec
    assert recognised.interface == "tensor"
    assert spec.weights == os.path.realpath(path)
    assert spec.nbytes == path.stat().st_size
    assert torch.is_tensor(load(spec).call((torch.ones(2, 3),), {}))
    save_file(Net(3).state_dict(), path)
    assert recognise(source).spec.key != spec.key


def cut_header(path):
    path.write_bytes(struct.pack("<Q", 10**6) + b"{}")


def cut_data(path):
    path.write_bytes(path.read_bytes()[:-4])


def no_header(path):
    path.write_bytes(struct.pack("<Q", 2) + b"no")


@pytest.mark.parametrize("damage", [cut_header, cut_data, no_header])
def test_damaged_weights_are_refused_early(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_file(Net().state_dict(), path)
    damage(path)
    with pytest.raises(ModelLoadError, match="fetch or save the model again"):
        recognise(ModelSource.from_factory(Net, weights=path))


def test_weights_must_be_safetensors(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match="save_file"):
        recognise(ModelSource.from_factory(Net, weights=tmp_path / "w.bin"))
    with pytest.raises(ModelLoadError, match="no weights at"):
        recognise(ModelSource.from_factory(Net, weights=tmp_path / "w.safetensors"))


# Directories


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def transformer(tmp_path):
    folder = tmp_path / "tiny-bert"
    write_json(folder / "config.json", {"model_type": "bert"})
    write_json(folder / "tokenizer.json", {})
    save_file(Net().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def embedder(tmp_path, transformer):
    kinds = ("Transformer", "Pooling")
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in zip(("", "1_Pooling"), kinds, strict=True)
    ]
    write_json(transformer / "modules.json", modules)
    write_json(transformer / "1_Pooling" / "config.json", {"dimension": 3})
    return transformer


def test_directories_are_recognised_by_their_files(transformer):
    spec = recognise(transformer).spec
    assert (spec.kind, spec.name) == ("huggingface", "tiny-bert")
    assert spec.nbytes == (transformer / "model.safetensors").stat().st_size


def test_modules_make_a_sentence_transformer(embedder):
    assert recognise(str(embedder)).spec.kind == "sentence-transformers"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "1_Pooling/config.json"]
)
def test_every_file_of_a_directory_counts(embedder, name):
    key = recognise(embedder).spec.key
    write_json(embedder / name, {"model_type": "bert", "changed": True})
    assert recognise(embedder).spec.key != key


def test_code_of_a_directory_is_never_run(embedder):
    write_json(embedder / "1_Pooling" / "config.json", {"auto_map": {"A": "mine.B"}})
    with pytest.raises(ModelLoadError, match=r"auto_map in config\.json: mine\.B"):
        recognise(embedder)
    write_json(embedder / "modules.json", [{"path": "", "type": "mine.Model"}])
    with pytest.raises(ModelLoadError, match=r"mine\.Model in modules\.json"):
        recognise(embedder)


def test_pickled_weights_of_a_directory_are_refused(transformer):
    (transformer / "model.safetensors").rename(transformer / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin only.*convert them"):
        recognise(transformer)
    (transformer / "pytorch_model.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors weights"):
        recognise(transformer)


def test_missing_shards_are_named(transformer):
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    write_json(transformer / "model.safetensors.index.json", index)
    with pytest.raises(ModelLoadError, match=r"other\.safetensors is missing"):
        recognise(transformer)


def test_damaged_directories_are_refused_early(transformer):
    cut_data(transformer / "model.safetensors")
    with pytest.raises(ModelLoadError, match="truncated"):
        recognise(transformer)
    (transformer / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json holds no JSON"):
        recognise(transformer)


def test_other_directories_say_what_they_lack(tmp_path):
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    write_json(other / "notes.json", {})
    with pytest.raises(ModelLoadError, match="but nothing at all"):
        recognise(empty)
    with pytest.raises(ModelLoadError, match=r"neither config\.json.*notes\.json"):
        recognise(other)
