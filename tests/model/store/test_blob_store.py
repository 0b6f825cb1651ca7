"""The content store: one copy a host, however many processes use it."""

from __future__ import annotations

import errno
import functools
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dask_infer.errors import ModelLoadError
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.store.blob_store import (
    INLINE,
    PendingBlob,
    Store,
    default_store,
    read_blob,
    set_fetcher,
)

MB = 2**20


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", 10 * MB)


@pytest.fixture
def fetcher():
    yield set_fetcher
    set_fetcher(None)


def content(size):
    return lambda path: path.write_bytes(bytes(size))


def write(store, *keys, size=4 * MB):
    """Write entries, each used later than the one before."""
    for age, key in enumerate(reversed(keys)):
        store.write(key, content(size))
        os.utime(store.path(key), times=(0, time.time() - 10 - age))


def entries(store):
    return {path.name for path in store.root.iterdir() if "." not in path.name}


def elsewhere(store, code):
    """Start a process that runs `code` with the same store, and prints when ready."""
    script = f"""
    from pathlib import Path
    from dask_infer.model.store.blob_store import Store
    store = Store(Path({str(store.root)!r}), {store.limit})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# Entries


def test_entry_is_written_once(store):
    written = []

    def writer(path):
        written.append(path)
        path.write_bytes(b"x")

    assert not store.path("a").exists()
    assert store.write("a", writer) == store.write("a", writer) == store.path("a")
    assert store.path("a").read_bytes() == b"x"
    assert len(written) == 1


def test_racing_threads_write_once(store):
    written = []

    def writer(path):
        written.append(path)
        time.sleep(0.1)
        path.write_bytes(b"x")

    threads = [
        threading.Thread(target=store.write, args=("a", writer)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1


def test_racing_processes_write_once(store):
    code = """
    import time
    def writer(path):
        print("writing", flush=True)
        time.sleep(0.3)
        path.write_bytes(b"x")
    input()
    store.write("a", writer)
    """
    processes = [elsewhere(store, code) for _ in range(2)]
    outputs = [process.communicate("\n")[0] for process in processes]
    assert sorted(outputs) == ["", "writing\n"]


def test_failed_writer_leaves_nothing(store):
    def writer(path):
        path.write_bytes(b"half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        store.write("a", writer)
    assert not store.path("a").exists()
    assert not list(store.root.glob("*.tmp"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "PytorchStreamWriter failed writing file data/0: file write failed"
        ),
    ],
)
def test_full_disk_is_named(store, error):
    def writer(path):
        path.write_bytes(b"half")
        raise error

    with pytest.raises(ModelLoadError, match=r"no space .*infer\.store\.path"):
        store.write("a", writer)
    assert not list(store.root.glob("*.tmp"))


def test_too_large_an_entry_is_refused(store):
    with pytest.raises(ModelLoadError, match=r"12\.0 MiB.*10\.0 MiB.*store\.limit"):
        store.write("a", content(12 * MB))
    with pytest.raises(ModelLoadError, match=r"store\.limit"):
        store.write("a", pytest.fail, nbytes=12 * MB)
    assert not store.path("a").exists()


@pytest.mark.parametrize(
    "key", ["", "..", "../a", "/etc/passwd", "a.lock", ".a", "a/b"]
)
def test_keys_lead_nowhere_else(store, key):
    with pytest.raises(ValueError, match="no key"):
        store.path(key)


def test_remains_of_a_killed_writer_are_removed(store):
    process = elsewhere(
        store,
        """
        def writer(path):
            path.write_bytes(b"half")
            print("ready", flush=True)
            input()
        store.write("a", writer)
        """,
    )
    with process:
        assert process.stdout.readline()
        Store(store.root, None)
        assert len(list(store.root.glob("*.tmp"))) == 1  # its writer lives
        process.kill()
        process.wait()
    Store(store.root, None)
    assert not list(store.root.glob("*.tmp"))


# Eviction


def test_least_recently_used_is_evicted(store):
    write(store, "a", "b")
    store.require("a")
    store.write("c", content(4 * MB))
    assert entries(store) == {"a", "c"}
    assert not list(store.root.glob("b*"))


def test_pinned_entries_stay(store):
    write(store, "a", "b")
    with store.pin("a"), store.pin("a"):
        store.write("c", content(4 * MB))
        assert entries(store) == {"a", "c"}
    write(store, "a")
    store.write("d", content(4 * MB))
    assert "a" not in entries(store)


def test_release_twice_lets_other_pins_stand(store):
    write(store, "a", "b")
    first, second = store.pin("a"), store.pin("a")
    first.release()
    first.release()
    store.write("c", content(4 * MB))
    assert "a" in entries(store)
    second.release()


def test_entries_pinned_by_other_processes_stay(store):
    write(store, "a", "b")
    process = elsewhere(
        store, 'pin = store.pin("a")\nprint("ready", flush=True)\ninput()\n'
    )
    with process:
        assert process.stdout.readline()
        store.write("c", content(4 * MB))
        assert entries(store) == {"a", "c"}
        process.communicate("\n")
    os.utime(store.path("a"), times=(0, 0))
    store.write("d", content(4 * MB))
    assert entries(store) == {"c", "d"}


def test_where_nothing_can_be_locked_recent_entries_stay(store, monkeypatch):
    monkeypatch.setattr("dask_infer.model.store.pins.fcntl", None)
    write(store, "a", "b")
    os.utime(store.path("b"), times=(0, time.time() - 7200))
    store.write("c", content(4 * MB))
    assert entries(store) == {"a", "c"}
    with store.pin("a"):
        pass


def test_everything_pinned_goes_beyond_the_limit(store):
    write(store, "a", "b")
    with store.pin("a"), store.pin("b"):
        store.write("c", content(4 * MB))
        assert entries(store) == {"a", "b", "c"}


# Requiring


def test_missing_entry_says_so(store, fetcher):
    fetcher(None)  # a cluster of another test may have set one
    with pytest.raises(ModelLoadError, match=r"no host has .*; call predict\(\) again"):
        store.require("a")


def test_missing_entry_is_fetched_once(store, fetcher):
    asked = []

    def fetch(key, store):
        asked.append(key)
        time.sleep(0.1)
        store.write(key, content(3))

    fetcher(fetch)
    threads = [threading.Thread(target=store.require, args=("a",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["a"]
    assert store.require("a").read_bytes() == bytes(3)


def test_fetcher_that_fails_is_heard(store, fetcher):
    def fetch(key, store):
        raise ModelLoadError("no worker has it")

    fetcher(fetch)
    with pytest.raises(ModelLoadError, match="no worker has it"):
        store.require("a")


# The directory


def test_directory_is_private(store):
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_directory_open_to_others_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(ModelLoadError, match=r"open to other users .*store\.path"):
        Store(tmp_path, None)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("as_link", [False, True])
def test_directory_of_another_user_is_refused(tmp_path, as_link):
    place = tmp_path / "planted"
    target = tmp_path / "target" if as_link else place
    target.mkdir(mode=0o700)
    if as_link:
        place.symlink_to(target)
    os.chown(place, 12345, -1, follow_symlinks=False)
    with pytest.raises(ModelLoadError, match="another user"):
        Store(place, None)


def test_default_place_follows_the_configuration(tmp_path):
    with dask.config.set({"infer.store.path": str(tmp_path / "x" / "y")}):
        assert default_store().root == tmp_path / "x" / "y"
        assert default_store() is default_store()
        with dask.config.set({"infer.store.limit": "1 MiB"}):
            assert default_store().limit == MB


def test_default_place_is_the_cache_or_temporary_directory(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    with dask.config.set({"infer.store.path": None}):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert default_store().root == tmp_path / "cache" / "dask-infer"
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert default_store().root == tmp_path / f"dask-infer-{os.getuid()}"


# Blobs


def pickle_blob(obj, store):
    """Pickle an object into a store."""
    return PendingBlob(obj).write(store)


def layer(rows=64, columns=64):
    return torch.nn.Linear(columns, rows)


def test_small_objects_ride_along(store):
    for obj in ({"a": 1}, torch.ones(2)):
        blob = pickle_blob(obj, store)
        assert len(blob.data) <= INLINE
        assert blob.key == content_key(obj) == content_key(read_blob(blob, store))
    assert not entries(store)


def test_large_objects_are_stored_under_their_key(store):
    model = layer()
    blob = pickle_blob(model, store)
    assert blob.data is None
    assert entries(store) == {content_key(model)}
    assert content_key(read_blob(blob, store)) == blob.key


def test_local_classes_lambdas_and_ties_travel(store):  # PP-3
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = layer(), layer()
            self.second.weight = self.first.weight
            self.activate = lambda x: x + 1

        def forward(self, x):
            return self.second(self.activate(self.first(x)))

    model = Tied()
    loaded = read_blob(pickle_blob(model, store), store)
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded(torch.ones(2, 64)), model(torch.ones(2, 64)))


def test_cached_properties_of_local_classes_travel(store):
    class Lazy:
        @functools.cached_property
        def value(self):
            return 3

    assert read_blob(pickle_blob(Lazy(), store), store).value == 3


def test_writing_leaves_the_model_alone(store):  # DI-24, PP-5
    model = layer().train()
    model.register_forward_hook(print)
    model.weight.register_hook(print)
    key, names = content_key(model), set(vars(model))
    loaded = read_blob(pickle_blob(model, store), store)
    assert content_key(model) == key == content_key(loaded)
    assert model.training and set(vars(model)) == names


def mappings(path):
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = (line.split()[0].split("-") for line in maps if line.endswith(str(path)))
    return [(int(low, 16), int(high, 16)) for low, high in ranges]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_weights_are_mapped_not_copied(store, kind):  # FACTS 17c
    obj = layer(600, 600) if kind == "tensors" else np.ones((600, 600))
    blob = pickle_blob(obj, store)
    loaded = read_blob(blob, store)
    address = loaded.weight.data_ptr() if kind == "tensors" else loaded.ctypes.data
    assert address % 64 == 0
    where = mappings(store.path(blob.key))
    assert any(low <= address < high for low, high in where)


def test_mapped_arrays_may_be_written_to(store):
    blob = pickle_blob(np.ones(10_000), store)
    read_blob(blob, store)[:] = 7
    assert read_blob(blob, store).sum() == 10_000


def test_fitted_estimator_predicts_the_same(store):
    x = np.random.default_rng(0).normal(size=(500, 8))
    model = KNeighborsClassifier().fit(x, x[:, 0] > 0)
    loaded = read_blob(pickle_blob(model, store), store)
    assert (loaded.predict(x) == model.predict(x)).all()


def test_tensors_of_an_accelerator_load_on_the_cpu(store, monkeypatch):  # DI-15
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    stored, inline = (pickle_blob(torch.ones(n), store) for n in (9999, 2))
    assert stored.data is None and inline.data is not None
    for blob in (stored, inline):
        assert read_blob(blob, store).device.type == "cpu"


def test_views_of_a_large_tensor_are_written_alone(store):
    everything = torch.randn(1000, 1000)
    model = layer(1, 1000)
    model.weight = torch.nn.Parameter(everything[:1])
    blob = pickle_blob(model, store)
    assert store.path(blob.key).stat().st_size < 10_000
    assert torch.equal(read_blob(blob, store).weight, model.weight)
    assert model.weight.data_ptr() == everything.data_ptr()


def test_attributes_of_weights_travel(store):
    model, view = layer(), torch.nn.Parameter(torch.randn(1000, 1000)[:1])
    model.weight.register_hook(print)
    model.view = view
    model.weight.scale = view.scale = 2
    loaded = read_blob(pickle_blob(model, store), store)
    assert loaded.weight.scale == loaded.view.scale == 2


def test_views_that_make_up_a_tensor_stay_shared(store):
    model = torch.nn.Module()
    whole = torch.randn(2, 1000)
    model.register_buffer("a", whole[0])
    model.register_buffer("b", whole[1])
    loaded = read_blob(pickle_blob(model, store), store)
    storages = {part.untyped_storage().data_ptr() for part in (loaded.a, loaded.b)}
    assert len(storages) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.utils.parametrizations.weight_norm(layer()),
        lambda: torch.nn.Sequential(torch.compile(layer(), backend="eager")),
        lambda: torch.fx.symbolic_trace(torch.nn.Sequential(layer())),
        lambda: torch.nn.Sequential(torch.jit.script(layer())),
    ],
    ids=["parametrized", "compiled part", "traced", "scripted part"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_alone_would_not_pickle(store, make):  # FACTS 17
    model = make()
    loaded = read_blob(pickle_blob(model, store), store)
    x = torch.ones(2, 64)
    assert torch.equal(loaded(x), model(x))


def test_unpicklable_part_is_named(store):
    model = torch.nn.Sequential(layer())
    named = pytest.raises(ModelLoadError, match=r"an open file \(0\.log\).*factory")
    with open(os.devnull, "w") as model[0].log, named:
        pickle_blob(model, store)
    lock = threading.Lock()
    with pytest.raises(ModelLoadError, match=r"the model holds a lock \(lock\)"):
        pickle_blob(lambda x: lock, store)
    assert not entries(store)


def test_damaged_entries_are_named(store):
    blobs = [pickle_blob(obj, store) for obj in (layer(), np.ones(5000))]
    for blob in blobs:
        path = store.path(blob.key)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 100)
        with pytest.raises(ModelLoadError, match=f"{path}.*damaged"):
            read_blob(blob, store)


def test_pinned_blob_outlives_others(store):
    pinned = pickle_blob(np.ones(MB // 2), store)  # 4 MiB
    os.utime(store.path(pinned.key), times=(0, 0))
    write(store, "a", "b")
    assert store.path(pinned.key).exists()
    copy = pickle.loads(pickle.dumps(pinned))
    del pinned
    gc.collect()
    store.write("c", content(4 * MB))
    assert not store.path(copy.key).exists()


def test_reading_needs_no_torch_for_estimators(store):
    code = """
    import sys
    from dask_infer.model.store.blob_store import PendingBlob, read_blob
    import numpy
    read_blob(PendingBlob(numpy.ones(9999)).write(store), store)
    assert "torch" not in sys.modules
    """
    process = elsewhere(store, code)
    process.communicate()
    assert process.returncode == 0
