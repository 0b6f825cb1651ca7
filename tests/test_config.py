"""Configuration: defaults, schema, documentation and environment agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from dask_infer import config

PACKAGE = Path(config.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"

defaults = yaml.safe_load((PACKAGE / "infer.yaml").read_text())
schema = yaml.safe_load((PACKAGE / "infer-schema.yaml").read_text())


def keys(tree: dict[str, Any], *above: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from keys(value, *above, name)
        else:
            yield ".".join((*above, name))


def properties(tree: dict[str, Any], *above: str) -> Iterator[tuple[str, dict]]:
    for name, node in tree["properties"].items():
        if "properties" in node:
            yield from properties(node, *above, name)
        else:
            yield ".".join((*above, name)), node


def variable(key: str) -> str:
    return "DASK_" + key.upper().replace(".", "__").replace("-", "_")


def test_defaults_satisfy_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(defaults, schema)


def test_schema_refuses_an_unknown_key() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError, match="memory_limit_typo"):
        jsonschema.validate({"infer": {"replica": {"memory_limit_typo": 1}}}, schema)


def test_schema_and_defaults_have_the_same_keys() -> None:
    assert sorted(keys(defaults)) == sorted(key for key, _ in properties(schema))


@pytest.mark.parametrize(("key", "node"), list(properties(schema)))
def test_every_key_is_described_and_says_who_reads_it(key: str, node: dict) -> None:
    assert node["description"].strip(), key
    assert node["read-by"] in {"client", "worker", "both"}, key


def test_defaults_are_registered_with_dask() -> None:
    assert dask.config.get("infer.delivery.timeout") == "5 minutes"
    assert config.get_seconds("delivery.timeout") == 300
    assert config.get_bytes("delivery.chunk") == 64 * 2**20
    assert config.get_bytes("replica.memory-limit") is None


def test_a_setting_of_the_user_wins() -> None:
    with dask.config.set({"infer.delivery.timeout": "7s"}):
        assert config.get_seconds("delivery.timeout") == 7


def test_every_environment_variable_works() -> None:
    names = list(keys(defaults))
    values = {variable(key): str(1000 + i) for i, key in enumerate(names)}
    script = (
        "import dask_infer.config as config\n"
        f"for key in {names}: print(config.get(key.removeprefix('infer.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **values},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(values.values())


#: Methods of the accessor, which pages write as `infer.predict` too.
METHODS = {"infer.predict", "infer.to_numpy", "infer.yaml"}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_docs_name_only_keys_that_exist(page: Path) -> None:
    named = set(re.findall(r"`(infer\.[a-z.-]+)`", page.read_text()))
    assert named <= METHODS | set(keys(defaults))


def test_importing_inside_a_config_block_keeps_the_section() -> None:
    code = (
        "import dask\n"
        "with dask.config.set({'infer.batch.rows': 7}):\n"
        "    import dask_infer\n"
        "    from dask_infer import config\n"
        "    assert config.get('batch.rows') == 7\n"
        "assert config.get('batch.rows') == 'auto'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
