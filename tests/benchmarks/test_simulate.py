"""The models of benchmarks/simulate: closed forms, and a simulation event by event."""

import heapq
import itertools
import random

import pytest

from benchmarks.simulate import calibration, recurrence, scale, tasks
from benchmarks.simulate.readmes import predictions
from benchmarks.simulate.recurrence import Loss, Pipeline
from benchmarks.simulate.tasks import Cluster


def equal(stages, window, **options):
    return Pipeline(lambda: [1.0] * stages, stages, window, **options)


@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_closed_forms_of_equal_stages(stages, count):
    def seconds(window, **options):
        return recurrence.run(equal(stages, window, **options), [count]).seconds

    assert seconds(2 * stages) == count + stages - 1
    assert seconds(1) == count * stages
    # A hop before the first stage, between stages, and after the last.
    assert seconds(10**6, hop=0.5) == count + stages - 1 + (stages + 1) / 2
    # A microbatch is 1 + h apart from its stages; W of them pass in that time.
    assert seconds(1, hop=0.5) == count * (stages + (stages + 1) / 2)
    assert seconds(10**6, instances=count) == stages


def test_the_slowest_stage_sets_the_pace():
    pipeline = Pipeline(lambda: [1.0, 3.0, 2.0], 3, 6)
    assert recurrence.run(pipeline, [100]).seconds == 1 + 100 * 3 + 2


def test_partitions_of_one_feeder_fill_and_drain():
    ran = recurrence.run(equal(3, 6, between=0.5), [8] * 4)
    assert ran.seconds == 4 * (8 + 2) + 3 * 0.5
    together = recurrence.run(equal(3, 6, feeders=4, between=0.5), [8] * 4)
    assert together.seconds == 4 * 8 + 2


@pytest.mark.parametrize(("stage", "again"), [(0, [0, 0, 0]), (1, [4, 0, 0]),
                                              (2, [5, 5, 0])])  # fmt: skip
def test_a_loss_costs_its_time_and_runs_the_window_again(stage, again):
    pipeline = equal(3, 5, loss=Loss(stage, 50.5, 10))
    ran = recurrence.run(pipeline, [100])
    assert ran.again == again
    # What was past the lost stage is done meanwhile, all else waits and starts anew.
    undisturbed = recurrence.run(equal(3, 5), [100]).seconds
    assert undisturbed + 10 <= ran.seconds <= undisturbed + 10 + 3


class Events:
    """The same pipeline, event by event: queues, a clock, and nothing clever."""

    def __init__(self, pipeline, partitions):
        self.pipeline, self.partitions = pipeline, list(partitions)
        self.events, self.order = [], itertools.count()
        self.queues = [[] for _ in range(pipeline.stages)]
        self.busy = [None] * pipeline.stages
        self.outside, self.inside = [], []
        self.blocked_until = 0.0
        self.again = [0] * pipeline.stages
        for _ in range(pipeline.feeders):
            self.feed()
        if pipeline.loss:
            self.at(pipeline.loss.at, self.lose)

    def at(self, when, call, *args):
        heapq.heappush(self.events, (when, next(self.order), call, args))

    def run(self):
        self.now = seconds = 0.0
        while self.events:
            self.now, _, call, args = heapq.heappop(self.events)
            seconds = max(seconds, call(*args) or 0)
        return seconds

    def feed(self):
        if self.partitions:
            partition = {"left": self.partitions.pop(0)}
            for _ in range(partition["left"]):
                self.outside.append({"of": partition, "stage": 0, "epoch": 0})
            self.at(getattr(self, "now", 0.0), self.admit)

    def admit(self):
        while self.outside and len(self.inside) < self.pipeline.window:
            each = self.outside.pop(0)
            each["times"] = self.pipeline.times()
            self.inside.append(each)
            self.enter(each)

    def enter(self, each):
        when = max(self.now, self.blocked_until) + self.pipeline.hop
        self.at(when, self.arrive, each, each["epoch"])

    def arrive(self, each, epoch):
        if epoch == each["epoch"]:
            self.queues[each["stage"]].append(each)
            self.work(each["stage"])

    def work(self, stage):
        if self.busy[stage] is None and self.queues[stage]:
            each = self.busy[stage] = self.queues[stage].pop(0)
            self.at(self.now + each["times"][stage], self.end, each, each["epoch"])

    def end(self, each, epoch):
        if epoch != each["epoch"]:
            return None
        stage = each["stage"]
        self.busy[stage] = None
        self.work(stage)
        each["stage"] += 1
        after = self.now + self.pipeline.hop
        if each["stage"] < self.pipeline.stages:
            self.at(after, self.arrive, each, epoch)
            return None
        self.at(after, self.done, each)
        return after

    def done(self, each):
        self.inside.remove(each)
        each["of"]["left"] -= 1
        if not each["of"]["left"]:
            self.at(self.now + self.pipeline.between, self.feed)
        self.admit()

    def lose(self):
        loss = self.pipeline.loss
        self.blocked_until = loss.at + loss.back
        for stage in range(loss.stage + 1):
            self.queues[stage], self.busy[stage] = [], None
        for each in self.inside:
            if each["stage"] <= loss.stage:
                for stage in range(loss.stage):
                    self.again[stage] += 1
                each.update(stage=0, epoch=1)
                self.enter(each)


@pytest.mark.parametrize("seed", range(60))
def test_it_equals_a_simulation_event_by_event(seed):
    draw = random.Random(seed)
    stages, window = draw.randint(1, 4), draw.randint(1, 7)
    means = [draw.choice([1, 2, 3]) for _ in range(stages)]
    single = draw.random() < 0.5
    partitions = [draw.randint(1, 9) for _ in range(draw.randint(1, 5))]
    loss = Loss(draw.randrange(stages), draw.uniform(3, 30), 40) if single else None

    def pipeline():
        # Of several feeders all microbatches are equal: who is first does not matter.
        noise = random.Random(seed)
        return Pipeline(
            lambda: [m * (noise.uniform(0.2, 2) if single else 1) for m in means],
            stages, window, hop=0.25, feeders=1 if single else 3,
            between=1.5, loss=loss,
        )  # fmt: skip

    events = Events(pipeline(), partitions)
    seconds = events.run()
    ran = recurrence.run(pipeline(), partitions)
    assert ran.seconds == pytest.approx(seconds, rel=1e-9 if single else 0.1)
    assert ran.again == events.again


@pytest.mark.parametrize(
    ("workers", "count", "seconds", "taken"),
    [
        (4, 400, 0.1, 10.0),  # the workers are the limit
        (4, 400, 0.0, 0.4),  # the scheduler is
        (1000, 5000, 0.2, 5.0),  # the scheduler: 1,000 workers x 1 ms > 0.2 s
        (1000, 5000, 2.0, 10.0),
    ],
)
def test_closed_forms_of_tasks(workers, count, seconds, taken):
    cluster = Cluster(workers, scheduler=1e-3, worker=0.0)
    found = tasks.run(cluster, count, lambda _: [seconds])
    # The last tasks of all workers end at once, and are handled one by one.
    assert taken <= found <= taken + seconds + workers * 1e-3


def test_faster_workers_get_more_tasks():
    cluster = Cluster(2, scheduler=0.0, worker=0.0)
    found = tasks.run(cluster, 30, lambda worker: [(1.0, 2.0)[worker]])
    assert found == 20


def test_processes_share_cores_equally():
    cores = tasks.Cores(2)
    for process, cpu in enumerate((1.0, 2.0, 2.0)):
        cores.start(0.0, process, cpu)
    # Three on two cores: each has had a second after 1.5. Then each has its own.
    assert cores.end() == (1.5, 0)
    cores.start(2.0, 3, 5.0)
    # Half a second is done; three share again.
    assert cores.end() == (pytest.approx(2.75), 1)


def test_cores_that_are_shared_are_the_limit():
    # Of 8 workers with 4 ms each and a scheduler with 1 ms, on two cores and on many.
    few, many = (Cluster(8, 1e-3, 4e-3, cores=n) for n in (2, 100))
    assert tasks.run(few, 1000, lambda _: [0.0]) == pytest.approx(2.5, rel=0.02)
    assert tasks.run(many, 1000, lambda _: [0.0]) == pytest.approx(1.0, rel=0.02)
    # What sleeps wants no core.
    taken = [tasks.run(each, 80, lambda _: [1.0]) for each in (few, many)]
    assert taken == pytest.approx([10.0, 10.0], rel=0.02)


def test_messages_wait_for_the_interval_of_their_stream():
    stream = tasks.Stream(0.005)
    assert stream.leaves(1.0) == 1.0
    later = [stream.leaves(at) for at in (1.001, 1.004)]
    assert later == pytest.approx([1.005, 1.005])
    assert stream.leaves(1.006) == pytest.approx(1.010)
    assert stream.leaves(2.0) == 2.0
    # A worker with two tasks in store gets two at most in each interval.
    one = Cluster(1, scheduler=1e-6, worker=1e-6)
    assert tasks.run(one, 1000, lambda _: [0.0]) == pytest.approx(2.5, rel=0.05)


def test_hops_are_read_between_the_figures_of_transport():
    fixed = calibration.STAGE_CPU.value
    assert calibration.hop(0) == fixed + 0.41e-3
    assert calibration.hop(4e6) == pytest.approx(fixed + 3.23e-3)
    assert calibration.hop(4e6) < calibration.hop(8e6) < calibration.hop(16e6)


def test_all_jobs_of_the_other_benchmarks_that_take_a_second_are_within_a_fifth():
    found = list(predictions())
    assert {each.benchmark for each in found} >= {"window", "recovery", "depth"}
    off = [each for each in found if abs(each.error) > 0.2]
    assert [(each.benchmark, each.case) for each in off] == [
        ("noop", "10 partitions, 2 workers, ms each")
    ]


def test_very_many_partitions_wait_for_the_scheduler():
    lines = list(scale.sizes(10**9, 1000, 20e-6, [500, 5000, 50_000]))
    assert [line[-1] for line in lines] == ["500 idle workers", "workers", "scheduler"]
