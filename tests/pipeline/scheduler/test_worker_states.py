"""Which workers can hold a stage."""

from dask_infer.pipeline.scheduler.worker_states import (
    WorkerState,
    candidates,
    remedy,
    shortage,
)

GPU = (("GPU", 1.0),)


def place(address, total=0, used=0, holds=()):
    return WorkerState(address, {"GPU": total}, {"GPU": total - used}, holds=holds)


def addresses(workers):
    return [worker.address for worker in workers]


def test_only_free_resources_count():  # PP-12
    workers = [place("a", 1, 1), place("b", 1), place("c"), place("d", 2, 1)]
    assert addresses(candidates(workers, GPU)) == ["b", "d"]


def test_without_resources_a_worker_holds_one_stage():
    workers = [place("a", holds=("m",)), place("b"), place("c")]
    assert addresses(candidates(workers, ())) == ["b", "c"]


def test_stages_of_one_instance_sit_on_distinct_workers():  # PP-12
    workers = [place("a", 2), place("b", 2)]
    assert addresses(candidates(workers, GPU, taken=["a"])) == ["b"]


def test_workers_without_stages_come_first():
    workers = [place("a", 2, 1, holds=("m",)), place("b", 2)]
    assert addresses(candidates(workers, GPU)) == ["b", "a"]


def test_a_shortage_names_what_is_missing_and_who_has_it():  # PP-13
    workers = [place("a", 1, 1, holds=("Bert",)), place("b", 1, 1), place("c")]
    lacks = shortage(workers, GPU, 2)
    assert "2 workers with GPU=1 are needed and 0 are free" in lacks
    assert "of 3 workers, 2 have GPU=1" in lacks
    assert "a holds Bert" in lacks
    assert "b has its GPU=1 in use by other tasks" in lacks


def test_one_worker_that_lacks_is_one():
    assert shortage([], GPU, 1).startswith("1 worker with GPU=1 is needed and 0 are")
    assert shortage([], (), 1).startswith("1 worker of its own is needed and 0 are")


def test_the_remedy_is_a_command_to_type():
    start = 'start more workers with GPU=1 (dask worker --resources "GPU=1")'
    assert remedy(GPU, several=False) == start
    assert remedy((), several=True) == "start more workers, or pass fewer stages"
