"""The environment of the peers: Ray Data, Spark and Daft, apart from the project's.

``python benchmarks/peers.py install`` builds it, ``... path`` prints its interpreter.
``DASK_INFER_PEERS`` puts it elsewhere than ``benchmarks/.peers``. Arguments after
``install`` go to pip, for instance an index that has CPU builds of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = (
    "ray[data]==2.60.*",
    "pyspark==4.3.*",
    "daft==0.7.26",
    "pandas",
    "pyarrow",
    "psutil",
    "transformers==5.*",
    "setuptools",
)


def place() -> Path:
    """Directory of the peers' environment."""
    default = Path(__file__).resolve().parent / ".peers"
    return Path(os.environ.get("DASK_INFER_PEERS", default))


def interpreter() -> Path:
    """Python of the peers' environment, which may not exist yet."""
    return place() / "bin" / "python"


def install(pip_arguments: list[str]) -> None:
    """Build the environment: torch first, so that no peer chooses another build."""
    if not interpreter().exists():
        venv.create(place(), with_pip=True)
    pip = [str(interpreter()), "-m", "pip", "install", *pip_arguments]
    subprocess.run([*pip, TORCH], check=True)
    constraint = place() / "torch.txt"
    constraint.write_text(f"torch=={_installed_torch()}\n")
    subprocess.run([*pip, "--constraint", str(constraint), *PEERS], check=True)


def _installed_torch() -> str:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    answer = subprocess.run(
        [str(interpreter()), "-c", code], check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def main(arguments: list[str]) -> None:
    """Obey ``install [pip arguments]`` or ``path``."""
    match arguments:
        case ["install", *rest]:
            install(rest)
        case ["path"]:
            print(interpreter())
        case _:
            raise SystemExit("usage: peers.py install [pip arguments] | path")


if __name__ == "__main__":
    main(sys.argv[1:])
