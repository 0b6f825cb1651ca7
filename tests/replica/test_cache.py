"""The cache of replicas: one load, leases, eviction by age."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.replica.cache import ReplicaCache
from dask_infer.replica.worker_place import Place
from dask_infer.spec import ModelSpec

MB = 2**20


def place(limit=None, **kwargs):
    import dask

    dask.config.set({"infer.replica.memory-limit": limit})
    return Place("local", 1, lambda: 0, **kwargs)


@pytest.fixture(autouse=True)
def restore_config():
    import dask

    with dask.config.set({"infer.replica.memory-limit": None}):
        yield


def spec_of(mib, fill):
    """A model of so many MiB whose content is `fill`."""
    model = torch.nn.Linear(MB // 4 // 8, int(8 * mib), bias=False)
    torch.nn.init.constant_(model.weight, fill)
    recognised = recognise(model)
    recognised.snapshot()
    return recognised.spec


class SlowToBuild:
    built = 0

    def __init__(self):
        time.sleep(0.2)
        type(self).built += 1

    def __call__(self, x):
        return x


def test_one_load_with_racing_threads():  # DI-02
    cache, spec = ReplicaCache(), spec_of(1, 0.5)
    seen = []
    barrier = threading.Barrier(4)

    def use():
        barrier.wait()
        with cache.lease(spec, place()) as replica:
            seen.append(replica.model)
            time.sleep(0.02)

    threads = [threading.Thread(target=use) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(seen) == 4
    assert len(set(map(id, seen))) == 1
    (replica,) = cache.replicas()
    assert replica.leases == 0


def test_least_recently_used_goes_first():
    cache = ReplicaCache()
    a, b, c = (spec_of(1, fill) for fill in (1, 2, 3))
    limit = int(2.5 * MB)
    for spec in (a, b, a, c):
        with cache.lease(spec, place(limit)):
            pass
    assert {r.spec for r in cache.replicas()} == {a, c}


def test_eviction_waits_for_lease():
    cache = ReplicaCache()
    a, b = spec_of(1, 1), spec_of(1, 2)
    order = []
    with cache.lease(a, place(int(1.5 * MB))) as held:

        def use_b():
            with cache.lease(b, place(int(1.5 * MB))):
                order.append("b runs")

        thread = threading.Thread(target=use_b)
        thread.start()
        time.sleep(0.2)
        assert held.model is not None
        order.append("a done")
    thread.join(30)
    assert order == ["a done", "b runs"]
    assert [r.spec for r in cache.replicas()] == [b]


def test_a_model_beyond_the_limit_is_refused():
    with (
        pytest.raises(
            ModelLoadError, match=r"needs 4\.00 MiB, more than the 1\.00 MiB"
        ),
        ReplicaCache().lease(spec_of(4, 1), place(MB)),
    ):
        pass


def test_a_model_that_would_pause_the_worker_is_refused():
    tight = Place("tcp://w", 1, lambda: 6 * MB, memory_limit=10 * MB, pause_at=8 * MB)
    message = r"memory limit is 10\.00 MiB.*pauses it at 8\.00 MiB"
    with (
        pytest.raises(ModelLoadError, match=message),
        ReplicaCache().lease(spec_of(4, 1), tight, device="cpu"),
    ):
        pass


def test_a_failed_load_leaves_nothing_behind():
    cache = ReplicaCache()
    recognised = recognise(Broken)
    recognised.snapshot()
    for _ in range(2):
        with (
            pytest.raises(ModelLoadError, match="Broken"),
            cache.lease(recognised.spec, place()),
        ):
            pass
    assert cache.replicas() == []


class Broken:
    def __init__(self):
        raise KeyError("no such table")


def test_unload_waits_for_users():
    cache, spec = ReplicaCache(), spec_of(1, 4)
    with cache.lease(spec, place()) as replica:
        assert cache.unload(spec.key) == 1
        assert cache.replicas() == []
        assert replica.model is not None
        with cache.lease(spec, place()) as fresh:
            assert fresh is not replica
    assert replica.model is None
    assert fresh.model is not None
    cache.unload()
    assert fresh.model is None


def test_unload_takes_effect_on_a_model_that_loads():
    cache, started, go = ReplicaCache(), threading.Event(), threading.Event()
    spec, leased = spec_of(1, 0.75), []
    load = cache._load

    def slow_load(*args):
        started.set()
        go.wait(30)
        return load(*args)

    cache._load = slow_load

    def use():
        with cache.lease(spec, place()) as replica:
            leased.append(replica.loaded)

    user = threading.Thread(target=use)
    user.start()
    assert started.wait(30)
    assert cache.unload() == 1
    go.set()
    user.join(30)
    assert leased
    assert cache.replicas() == []


def test_dtypes_are_replicas_of_their_own():
    cache, spec = ReplicaCache(), spec_of(1, 5)
    with (
        cache.lease(spec, place()) as full,
        cache.lease(spec, place(), dtype="bfloat16") as half,
    ):
        assert half.nbytes == full.nbytes // 2
        assert half.loaded.floating == torch.bfloat16


def test_a_load_that_hangs_is_abandoned():  # BM-22
    recognised = recognise(SlowToBuild)
    recognised.snapshot()
    cache = ReplicaCache()
    with (
        pytest.raises(ModelLoadError, match=r"was not loaded within 0\.05 s"),
        cache.lease(recognised.spec, place(), timeout=0.05),
    ):
        pass
    with cache.lease(recognised.spec, place(), timeout=30) as replica:
        assert replica.loaded.call((7,), {}) == 7


def test_repr_shows_the_load():
    cache, spec = ReplicaCache(), spec_of(1, 6)
    with cache.lease(spec, place()):
        assert repr(cache) == "<ReplicaCache 1 models 1.00 MiB, 1 leases>"


def test_a_size_that_ran_out_of_memory_is_remembered():
    cache, spec = ReplicaCache(), spec_of(1, 7)
    with cache.lease(spec, place()) as replica:
        sizes = replica.sizes
        sizes.rows("x", 64, 4, lambda: 0).on_out_of_memory(64)
        assert sizes.rows("x", 64, 4, lambda: 0).size == 32
        assert sizes.rows("x", 128, 4, lambda: 0).size == 128
        tight = sizes.rows("x", None, 1024, lambda: 32 * 4 * 1024 * 10)
        assert tight.limit == 10
        assert "FixedSize 32 rows" in repr(replica)
    cache.unload()


def test_a_waiter_gives_up_after_its_own_timeout(caplog):
    cache = ReplicaCache()
    tight = place(int(1.5 * MB))
    with (
        caplog.at_level("INFO", "dask_infer.replica.cache"),
        cache.lease(spec_of(1, 8), tight),
        pytest.raises(ModelLoadError, match=r'waited 0\.1 s .* for "Linear", in use'),
        cache.lease(spec_of(1, 9), tight, timeout=0.1),
    ):
        pass
    assert sum("waits for" in r.message for r in caplog.records) == 1
    assert len(cache.replicas()) == 1


def test_weights_that_cannot_be_read_name_the_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no")
    spec = ModelSpec("k", "bert", "huggingface", path=str(tmp_path))
    cache = ReplicaCache()
    with (
        pytest.raises(ModelLoadError, match=f'"bert" in {tmp_path} cannot be read'),
        cache.lease(spec, place(), dtype="bfloat16"),
    ):
        pass
    assert cache._replicas == {}


class FitsOnceAlone:
    attempts = 0

    def __init__(self):
        type(self).attempts += 1
        if type(self).attempts % 2 or self.never:
            raise MemoryError

    never = False

    def __call__(self, x):
        return x


class NeverFits(FitsOnceAlone):
    never = True


def test_a_load_without_memory_goes_on_without_idle_models():
    cache = ReplicaCache()
    with cache.lease(spec_of(1, 10), place()):
        pass
    recognised = recognise(FitsOnceAlone)
    recognised.snapshot()
    with cache.lease(recognised.spec, place()):
        assert [r.spec for r in cache.replicas()] == [recognised.spec]
    recognised = recognise(NeverFits)
    recognised.snapshot()
    with (
        pytest.raises(ModelLoadError, match=r'"NeverFits" needs .* memory ran out on'),
        cache.lease(recognised.spec, place()),
    ):
        pass


def test_other_options_of_compile_are_another_replica():
    cache, spec = ReplicaCache(), spec_of(1, 4)
    ways = [None, (("backend", "eager"),), (("backend", "aot_eager"),)]
    for options in ways:
        with cache.lease(replace(spec, compile=options), place()):
            pass
    assert [replica.spec.compile for replica in cache.replicas()] == ways
    assert len({replica.sizes.owner for replica in cache.replicas()}) == 3
