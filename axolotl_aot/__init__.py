"""Distributional preference alignment (AOT, arXiv 2406.05882) as a plugin for axolotl.

`axolotl_aot.AOTPlugin` is the name for a YAML's `plugins:`. It is imported when it is first asked
for, so that `axolotl_aot.dominance` can be used with nothing but torch and scipy installed.
"""

__version__ = "0.2.0"

__all__ = ["AOTPlugin", "__version__"]


def __getattr__(name: str):
    if name == "AOTPlugin":
        from axolotl_aot.plugin import AOTPlugin

        return AOTPlugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
