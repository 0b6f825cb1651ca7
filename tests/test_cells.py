"""Models whose classes are made in cells of a notebook, changed, and made again."""

import sys
import textwrap

import cloudpickle
import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_infer  # noqa: F401
from dask_infer.model.identity import pickling, user_classes


@pytest.fixture
def main(monkeypatch):
    """What a notebook's cells have made; deleted after the test."""
    names = vars(sys.modules["__main__"])
    before = set(names)
    yield names
    for name in set(names) - before:
        del names[name]


@pytest.fixture
def cell(main):
    return lambda code: exec(textwrap.dedent(code), main)


@pytest.fixture
def ddf():
    frame = pd.DataFrame({"x": np.arange(1, 7, dtype="float32")})
    return dd.from_pandas(frame, npartitions=2)


@pytest.fixture
def predict(ddf):
    def predict(model, **options):
        pred = ddf.infer.predict(model, columns="x", meta="float32", **options)
        return pred["prediction"]

    return predict


SCHEDULERS = pytest.mark.parametrize("scheduler", ["sync", "threads", None])

USERS = {
    "settings": """
        class Settings:
            factor = 1
        def model(x): return x * Settings.factor
    """,
    "helper": """
        class Settings:
            factor = 1
            def scale(self, x): return x * self.factor
        class Model:
            def __init__(self): self.helper = Settings()
            def __call__(self, x): return self.helper.scale(x)
        model = Model()
    """,
    "base": """
        class Settings:
            factor = 1
            def scale(self, x): return x * self.factor
        class Model(Settings):
            def __call__(self, x): return super().scale(x)
        model = Model()
    """,
}


@SCHEDULERS
@pytest.mark.parametrize("user", USERS)
def test_a_class_that_changes_between_calls(
    cell, main, predict, client, scheduler, user
):
    cell(USERS[user])
    preds = {}
    for factor in (2, 3, 5):
        main["Settings"].factor = factor
        preds[factor] = predict(main["model"])
    for _ in range(2):  # the second time they are resident
        found = dask.compute(*preds.values(), scheduler=scheduler)
        assert [one.iloc[0] for one in found] == [2, 3, 5]
    assert main["Settings"].factor == 5
    main["Settings"].factor = 7
    for factor, pred in preds.items():
        assert pred.compute(scheduler=scheduler).iloc[0] == factor


@SCHEDULERS
def test_a_helper_reads_the_globals_that_it_has_now(
    cell, main, predict, client, scheduler
):
    """To read a pickle gave the user's class methods with the globals of before."""
    cell("""
        factor = 2
        class Helper:
            def scale(self, x): return x * factor
        helper = Helper()
        def model(x): return helper.scale(x)
    """)
    first = predict(main["model"])
    assert first.compute(scheduler=scheduler).iloc[0] == 2
    cell("factor = 3")
    assert main["helper"].scale(1) == 3
    assert predict(main["model"]).compute(scheduler=scheduler).iloc[0] == 3
    assert first.compute(scheduler=scheduler).iloc[0] == 2


@SCHEDULERS
def test_a_cell_that_is_run_again(cell, main, predict, client, scheduler):
    """Its class is another one of equal content: the model stays resident."""
    made = """
        class Output:
            def __init__(self, values): self.values = values
        def model(x): return Output(2 * x)
    """
    after = """
        def postprocess(output, frame):
            if isinstance(output, Output): return output.values + {}
            return -output.values
    """
    for plus in (1, 2):
        cell(made)
        cell(after.format(plus))
        pred = predict(main["model"], postprocess=main["postprocess"])
        assert pred.compute(scheduler=scheduler).iloc[0] == 2 + plus


@SCHEDULERS
def test_rows_and_results_are_of_the_class_that_the_user_has_now(
    cell, main, client, scheduler
):
    for _ in range(2):
        cell("""
            class Box:
                def __init__(self, value): self.value = value
            def model(boxes):
                assert all(isinstance(box, Box) for box in boxes)
                return [Box(box.value + 1) for box in boxes]
        """)
        frame = pd.DataFrame({"box": [main["Box"](value) for value in range(4)]})
        with dask.config.set({"dataframe.convert-string": False}):
            ddf = dd.from_pandas(frame, npartitions=2)
            pred = ddf.infer.predict(main["model"], columns="box", meta=object)
            found = pred["prediction"].compute(scheduler=scheduler)
        assert [type(box) for box in found] == [main["Box"]] * 4
        assert [box.value for box in found] == [1, 2, 3, 4]


@SCHEDULERS
def test_functions_with_a_cache_travel(cell, main, predict, client, scheduler):
    made = """
        import functools
        factors = [2]
        @functools.cache
        def factor(depth=3):
            return factor(depth - 1) if depth else factors[0]
        class Model:
            @functools.lru_cache(maxsize=4)
            def offset(self): return factors[0]
            def __call__(self, x): return x * factor() + self.offset()
        model = Model()
    """
    cell(made)
    first = predict(main["model"])
    assert first.compute(scheduler=scheduler).iloc[0] == 4
    cell("factors[0] = 3; factor.cache_clear()")
    assert predict(model := main["Model"]()).compute(scheduler=scheduler).iloc[0] == 6
    assert model.offset() == 3 and main["factor"]() == 3
    assert first.compute(scheduler=scheduler).iloc[0] == 4
    cell(made)
    assert predict(main["model"]).compute(scheduler=scheduler).iloc[0] == 4


LEADS = {
    "class of a model": """
        class Model:
            def __call__(self, x): return x * Helper().factor(self)
        class Helper:
            def factor(self, model): return 2 if isinstance(model, Model) else 1
        model = Model()
    """,
    "base that is a model": """
        import dataclasses
        class Base:
            def __call__(self, x): return x * Helper().factor(self)
        @dataclasses.dataclass
        class Model(Base):
            size: int = 1
        class Helper:
            def factor(self, model): return 2 if isinstance(model, Base) else 1
        model = Model()
    """,
    "sentinel": """
        MISSING = object()
        class Helper:
            def factor(self, given): return 2 if given is MISSING else 1
        def model(x): return x * Helper().factor(MISSING)
    """,
    "object": """
        class Missing: pass
        MISSING = Missing()
        class Helper:
            def factor(self, given): return 2 if given is MISSING else 1
        def model(x): return x * Helper().factor(MISSING)
    """,
    "metaclass": """
        class Meta(type):
            made = []
            def __new__(*args):
                made = type.__new__(*args)
                Meta.made.append(made)
                return made
        class Part(metaclass=Meta):
            factor = 2
        class Half(Part): pass
        def model(x): return x * Half.factor * isinstance(Half, Meta)
    """,
}


@SCHEDULERS
@pytest.mark.parametrize("lead", LEADS)
def test_classes_lead_to_what_the_model_has(
    cell, main, predict, client, scheduler, lead
):
    """In the user's process a class must not lead to the user's own objects."""
    cell(LEADS[lead])
    for _ in range(2):
        for add in (0, 1):
            cell(f"def postprocess(output, frame): return output + {add}")
            pred = predict(main["model"], postprocess=main["postprocess"])
            assert pred.compute(scheduler=scheduler).iloc[0] == 2 + add
        cell(LEADS[lead])


@pytest.mark.parametrize("scheduler", ["sync", None])
def test_classes_that_were_replaced_stay_together(
    cell, main, predict, client, scheduler
):
    made = """
        class Part: pass
        class Whole:
            factor, part = {}, Part
        def model(x): return x * Whole.factor * isinstance(Whole.part(), Part)
    """
    cell(made.format(2))
    first = predict(main["model"])
    assert first.compute(scheduler=scheduler).iloc[0] == 2
    cell(made.format(3))
    assert predict(main["model"]).compute(scheduler=scheduler).iloc[0] == 3
    assert first.compute(scheduler=scheduler).iloc[0] == 2


def test_other_tasks_bring_a_class_that_changed_since(cell, main, ddf, predict, client):
    cell("""
        class Settings:
            factor = 2
        def model(x): return x * Settings.factor
        def other(frame): return frame * Settings.factor
    """)
    first = predict(main["model"])
    for factor in (3, 4):
        assert first.compute().iloc[0] == 2
        main["Settings"].factor = factor
        assert ddf.map_partitions(main["other"]).compute()["x"].iloc[0] == factor
    assert first.compute().iloc[0] == 2


def test_a_model_that_changes_a_class_is_not_loaded_each_time(
    cell, main, predict, client
):
    cell("""
        class Calls:
            number = 0
        def model(x):
            Calls.number += 1
            return x
    """)
    pred = predict(main["model"], keep=False)
    loads = []
    for _ in range(4):
        pred.compute()
        found = client.run(lambda: [id(r) for r in replica_cache().replicas()])
        loads.append(found)
    assert loads[-1] == loads[-2]


def replica_cache():
    from dask_infer.replica.cache import cache

    return cache


def read(obj):
    return pickling.from_bytes(pickling.to_bytes(obj, pickling.dry_run(obj)))


def test_a_class_is_taken_as_it_is_while_it_has_the_content(cell, main):
    cell("""
        class Value:
            size = 1
            def get(self): return self.size
    """)
    kind, get = main["Value"], main["Value"].get
    data = pickling.to_bytes(kind(), pickling.dry_run(kind()))
    with user_classes.sharing() as shared:
        assert type(pickling.from_bytes(data)) is kind and kind.get is get
    assert not shared.changed()
    kind.size = 2
    assert shared.changed()
    with user_classes.sharing() as others:
        other = pickling.from_bytes(data)
    assert type(other) is not kind and (other.get(), kind.size) == (1, 2)
    assert not others.changed()
    assert type(read(kind())) is kind


def test_classes_that_a_reading_built_are_let_go(cell, main):
    cell("class Value:\n    size = 1")
    data = pickling.to_bytes(main["Value"], pickling.dry_run(main["Value"]))
    main["Value"].size = 2
    assert pickling.from_bytes(data).size == 1
    assert not user_classes._readings.stack


@pytest.mark.parametrize("base", ["", "(ValueError)", "(enum.Enum)"])
def test_classes_of_errors_and_enumerations_keep_their_methods(cell, main, base):
    cell(f"""
        import enum
        class Kind{base}:
            first = 1
            def get(self): return factor
        factor = 2
    """)
    get = main["Kind"].get
    assert read(main["Kind"]) is main["Kind"] and main["Kind"].get is get


def test_classes_that_nobody_wrote_to_are_not_hashed_again(cell, main, monkeypatch):
    cell("class Value:\n    size = 1\n    def get(self): return self.size")
    data = pickling.to_bytes(main["Value"], pickling.dry_run(main["Value"]))
    state = cloudpickle.dumps(main["Value"])
    main["Value"].size = 2  # so that it is built anew
    with user_classes.sharing() as shared:
        kind = pickling.from_bytes(data)
    hashed = []
    key_of = user_classes.known_key
    monkeypatch.setattr(
        user_classes, "known_key", lambda c: hashed.append(c) or key_of(c)
    )
    assert not shared.changed() and not hashed
    assert cloudpickle.loads(state) is kind  # a row of another task's: it is equal
    assert not shared.changed() and hashed == [kind]
    assert not shared.changed() and hashed == [kind]
    kind.size = 3
    assert shared.changed()


@SCHEDULERS
def test_functions_beside_the_model_read_a_class_as_it_was(
    cell, main, predict, client, scheduler
):
    cell("""
        class Settings:
            factor = 2
        def model(x): return x
        def postprocess(output, frame): return output * Settings.factor
    """)
    first = predict(main["model"], postprocess=main["postprocess"])
    for factor in (3, 2, 5, 3):
        main["Settings"].factor = factor
        pred = predict(main["model"], postprocess=main["postprocess"])
        assert pred.compute(scheduler=scheduler).iloc[0] == factor
        assert first.compute(scheduler=scheduler).iloc[0] == 2
