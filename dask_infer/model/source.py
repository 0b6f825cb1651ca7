"""A model with its format named, where its class does not show it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, repr=False)
class ModelSource:
    """A model, and what it is taken as.

    Accepted wherever a model is; made by its class methods only. Nothing is opened,
    built or imported until a prediction asks for it.

    Examples
    --------
    >>> ModelSource.from_path("model.pt", trust=True)
    ModelSource.from_path('model.pt', trust=True)
    >>> ModelSource.from_factory(dict, size=3)
    ModelSource.from_factory(dict, size=3)
    """

    kind: Literal["module", "path", "factory", "estimator"]
    #: The module, path, factory or estimator.
    target: Any
    #: Arguments of a factory.
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: safetensors file that fills what a factory builds.
    weights: str | None = None
    #: Code in a file may run.
    trust: bool = False

    @classmethod
    def from_module(cls, module: Any) -> ModelSource:
        """Take a torch module, which is otherwise recognised by its class.

        Parameters
        ----------
        module
            A ``torch.nn.Module``; pickled as it is when the prediction is built.
        """
        return cls("module", module)

    @classmethod
    def from_path(
        cls, path: str | os.PathLike[str], trust: bool = False
    ) -> ModelSource:
        """Take a file or directory that every worker can read at this path.

        Parameters
        ----------
        path
            A model file (``*.pt2``, ``*.onnx``, ...), or the directory of a Hugging
            Face or sentence-transformers model.
        trust
            The file may run code when it is loaded, as TorchScript archives, pickled
            modules and some exported programs do. Only for files from people you
            trust as you trust the code you run.

        Raises
        ------
        TypeError
            If `path` is no path.
        ValueError
            If `trust` is neither True nor False.
        """
        found = _path(
            path, "ModelSource.from_path takes", "pass the model itself to predict()"
        )
        if not isinstance(trust, bool):
            raise ValueError(f"trust={trust!r}: pass True or False")
        return cls("path", found, trust=trust)

    @classmethod
    def from_factory(
        cls,
        factory: Callable[..., Any],
        *args: Any,
        weights: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> ModelSource:
        """Build the model on each worker, so that it never travels.

        Parameters
        ----------
        factory
            A class or function that returns the model: a torch module, which is called
            with tensors, an estimator, or anything callable.
        *args, **kwargs
            Its arguments.
        weights
            A safetensors file (or the ``*.index.json`` of several) that every worker
            can read: the module is built without memory for its parameters, then they
            are mapped from the file.

        Raises
        ------
        TypeError
            If `weights` is no path.
        """
        place = None
        if weights is not None:
            place = _path(
                weights,
                "weights= takes",
                "save the weights with safetensors.torch.save_file(weights, path)",
            )
        return cls("factory", factory, args, kwargs, weights=place)

    @classmethod
    def from_estimator(cls, estimator: Any) -> ModelSource:
        """Take an estimator in the manner of scikit-learn, called with pandas frames.

        Parameters
        ----------
        estimator
            A fitted object with ``predict``, or another method that ``method=`` names.
        """
        return cls("estimator", estimator)

    def __repr__(self) -> str:
        name = getattr(self.target, "__name__", None)
        # The repr of a large module fills a screen.
        shown = self.target if self.kind == "path" else None
        first = repr(shown) if shown is not None else name or type(self.target).__name__
        parts = [first, *map(repr, self.args)]
        parts += [f"{key}={value!r}" for key, value in self.kwargs.items()]
        if self.weights is not None:
            parts.append(f"weights={self.weights!r}")
        if self.trust:
            parts.append("trust=True")
        return f"ModelSource.from_{self.kind}({', '.join(parts)})"


def _path(given: Any, takes: str, remedy: str) -> str:
    """Return a path as text, or raise `TypeError`."""
    try:
        path = os.fspath(given)
    except TypeError:
        path = None
    if isinstance(path, str):
        return path
    raise TypeError(f"{takes} a path, not {type(given).__name__}; {remedy}")
