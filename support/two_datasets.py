"""Our `datasets.py` and Hugging Face's package `datasets` in one process, imported in either order.

Python has one module for a name. Here that module is ours, and it answers with theirs what it lacks:

    from datasets import Loader          # ours
    from datasets import load_dataset    # theirs, by the `__getattr__` of our module
    import datasets.features             # theirs, by `Finder`

`import support` installs the finder. Every module of this project imports `support` before `datasets`.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "datasets.py"
_theirs: ModuleType | None = None


def theirs() -> ModuleType | None:
    """Hugging Face's package, imported at the first call; None if it is not installed."""
    global _theirs
    if _theirs is None:
        elsewhere = [folder for folder in sys.path if Path(folder or ".").resolve() != FILE.parent]
        spec = PathFinder.find_spec("datasets", elsewhere)
        if spec is None or spec.loader is None or not spec.submodule_search_locations:
            return None
        ours = sys.modules["datasets"]
        _theirs = sys.modules["datasets"] = importlib.util.module_from_spec(
            spec
        )  # it imports parts of itself
        try:
            spec.loader.exec_module(_theirs)
        except BaseException:
            _theirs = None
            raise
        finally:
            sys.modules["datasets"] = ours
    return _theirs


def attribute(name: str) -> Any:
    """What Hugging Face's package has under this name. Raises AttributeError."""
    asked = not name.startswith("__") or name == "__version__"  # tools look for other names in every module
    if asked and (package := theirs()):
        return getattr(package, name)
    raise AttributeError(f"module 'datasets' has no attribute {name!r}")


class Finder(MetaPathFinder, Loader):
    """Finds ours as `datasets`, and `datasets.x` in their package, which is imported whole before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "datasets":
            return importlib.util.spec_from_file_location(name, FILE)
        if not name.startswith("datasets.") or name.count(".") > 1 or not (package := theirs()):
            return None
        if name in sys.modules:  # imported with the package just now; a second time would double it
            return ModuleSpec(name, self, loader_state=sys.modules.pop(name))
        return PathFinder.find_spec(name, package.__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = spec.loader_state
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__ and module.__spec__.loader_state


def install() -> None:
    """From now on `import datasets` is ours, also where theirs was imported before."""
    global _theirs
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    there = sys.modules.get("datasets")
    if there and Path(getattr(there, "__file__", None) or ".").resolve() != FILE:
        _theirs = sys.modules.pop("datasets")
