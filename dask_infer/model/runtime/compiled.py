"""What a module was compiled with, read back from it: a worker compiles it again.

Torch keeps the arguments of ``torch.compile`` in private places only. Whatever is not
found there as expected is left to its default.
"""

from __future__ import annotations

from typing import Any


class Options(dict[str, Any]):
    """The ``options`` of ``torch.compile``; hashable, since specs are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((name, repr(self[name])) for name in self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (dict(self),)


def compile_arguments(module: Any) -> tuple[tuple[str, object], ...] | None:
    """Keyword arguments that `module` was compiled with; None where it was not.

    Parameters
    ----------
    module
        What ``torch.compile`` returned, or a module after ``module.compile()``.
    """
    context = vars(module).get("dynamo_ctx") or _context(
        vars(module).get("_compiled_call_impl")
    )
    if context is None:
        return None
    try:
        return tuple(sorted(_arguments(context).items()))
    except Exception:  # torch moved it: compile with the defaults
        return ()


def _context(function: Any) -> Any:
    """Return what ``module.compile()`` put into the closure of its wrapper."""
    if function is None:
        return None
    cells = getattr(function, "__closure__", None) or ()
    contents = (cell.cell_contents for cell in cells)
    return next((c for c in contents if hasattr(c, "callback")), object())


def _arguments(context: Any) -> dict[str, object]:
    from torch._dynamo.backends.registry import list_backends
    from torch._dynamo.eval_frame import innermost_backend

    arguments: dict[str, object] = {}
    backend: Any = innermost_backend(context.callback)
    if context._dynamic is not None:
        arguments["dynamic"] = context._dynamic
    if context.fullgraph:
        arguments["fullgraph"] = True
    name = getattr(backend, "compiler_name", None)
    if name == "inductor":
        arguments.update(_inductor(backend.config, context._dynamic))
    elif name in list_backends(exclude_tags=()):  # the user's own stays where it is
        arguments["backend"] = name
        if options := backend.kwargs.get("options"):
            arguments["options"] = Options(options)
    return arguments


def _inductor(settings: dict[str, Any], dynamic: bool | None) -> dict[str, object]:
    """Return the mode whose settings these are, or else the settings as options."""
    if not settings:
        return {}
    import torch._inductor

    for mode, implied in torch._inductor.list_mode_options(dynamic=dynamic).items():
        if implied == settings:
            return {"mode": mode}
    return {"options": Options(settings)}
