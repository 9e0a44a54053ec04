"""Build Sora yourself: text-to-video generation from the first pixel to the signed file.

The names below load when they are first used, so that `import sora_edu` costs nothing.
"""

__version__ = "0.1.0"

_LAZY = {
    "World": "sora_edu.world.dataset",
    "generate": "sora_edu.pipeline.generate",
    "SoraPipeline": "sora_edu.pipeline.face",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name):
    "The public name `name`, from the module that defines it."
    if name not in _LAZY:
        raise AttributeError(f"module 'sora_edu' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__():
    return sorted(set(globals()) | set(_LAZY))
