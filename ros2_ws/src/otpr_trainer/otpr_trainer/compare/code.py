# SPDX-License-Identifier: Apache-2.0
"""Which code the methods of other packages are. Of ours the records name the commit; of theirs nothing else would tell what ran."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from otpr_trainer.compare.plan import Plan, modules

_OURS = __name__.partition(".")[0]


def of(plan: Plan) -> dict[str, str]:
    """By name, for the start policy and the methods of other packages: a hash of all Python source of the package that has it.

    Raises:
        PlanError: an algorithm is not installed.
    """
    packages = {name: module.partition(".")[0] for name, module in modules(plan).items()}
    return {name: _hash(package) for name, package in packages.items() if package != _OURS}


def _hash(package: str) -> str:
    """Of file names and contents; of a module that is one file, of that."""
    spec = find_spec(package)
    assert spec is not None  # its command was loaded from it
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    if not folders and spec.origin is not None:
        files = [(Path(spec.origin).name, Path(spec.origin))]
    content = sha256()
    for name, path in files:
        content.update(f"{name}\0{sha256(path.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()
