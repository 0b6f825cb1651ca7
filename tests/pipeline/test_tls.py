"""A cluster whose scheduler, workers and clients each have papers of their own."""

import shutil
import subprocess

import pytest
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

from dask_infer import Layout, Towers

from .conftest import near

ROLES = ("scheduler", "worker", "client")


@pytest.fixture
def papers(tmp_path):
    """What each role shows, and the authority for all; as `dask scheduler` gets it."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    for role in ROLES:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-keyout", f"{role}.key", "-out", f"{role}.crt", "-subj", f"/CN={role}",
             "-addext", "subjectAltName=IP:127.0.0.1"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    authority = tmp_path / "authority.pem"
    authority.write_text("".join(path.read_text() for path in tmp_path.glob("*.crt")))

    def of(*roles):
        shown = {
            f"tls_{role}_{kind}": str(tmp_path / f"{role}.{end}")
            for role in roles
            for kind, end in [("cert", "crt"), ("key", "key")]
        }
        return Security(require_encryption=True, tls_ca_file=str(authority), **shown)

    return of


def test_stages_shards_and_towers_are_placed_and_fed_under_tls(
    store, papers, ddf, pdf, model, expected
):
    # The coordinator's client had no papers where the scheduler knows its own alone.
    worker = {"cls": Nanny, "options": {"nthreads": 1, "security": papers("worker")}}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "dashboard": False, "dashboard_address": ":0", "port": 0,
            "host": "127.0.0.1", "protocol": "tls://", "security": papers("scheduler"),
        },
    }  # fmt: skip
    with (
        SpecCluster(
            workers={0: worker, 1: worker}, scheduler=scheduler,
            security=papers(*ROLES), silence_logs=50,
        ) as cluster,
        Client(cluster.scheduler_address, security=papers("client")),
    ):  # fmt: skip
        for layout in (Layout(stages=2), Layout(shards=2)):
            pred = ddf.infer.predict(model, parallel=layout)
            near(pred.compute(), expected, pdf)
        towers = Towers(
            {
                "shared": (model, ["a", "b"], {"parallel": Layout(shards=2)}),
                "swept": (model, ["a", "b"], {"parallel": "sweep"}),
            },
            head=(lambda shared, swept: shared + swept, None, {"meta": "float32"}),
        )
        near(ddf.infer.predict(towers).compute(), 2 * expected, pdf)
