# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of what keeps the robot safe: breaks it in every small way there is, and asks whether a test notices.

A mutant is the module with one change: a comparison moved or turned round, an operator swapped, a constant changed, a
negation dropped, a returned value or a call left out. For each, the tests of that module run in a process of its own
and stop at the first that fails. A mutant that no test fails for survives; it is named with its place.

Writes out/mutation/safety.json. A mutant that was judged before, with the same sources and tests, is not judged again.
"""

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ros2_ws" / "src" / "otpr_policy" / "otpr_policy"
TESTS = ROOT / "tests" / "policy"
OUT = ROOT / "out" / "mutation" / "safety.json"
# What is mutated, and the tests that shall notice, the quickest first.
TARGETS = {
    "limits": ("test_limits.py",),
    "watchdog": ("test_watchdog.py",),
    "dead_man": ("test_dead_man.py",),
    "safety": ("test_safety.py", "test_control.py"),
    "rate": ("test_rate.py", "test_rate_fuzz.py", "test_control_timing.py"),
    "control": ("test_control.py", "test_control_timing.py", "test_takeover.py"),
}
# Imported once, before the first fork; nothing of ours, whose modules the mutants replace.
PRELOADED = ("hypothesis.extra.numpy", "numpy", "onnx", "pytest", "scipy.spatial.transform", "yaml")
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.MatMult: (),
}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "all": "any", "any": "all", "argmin": "argmax"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, and from what to what."""

    module: str
    line: int
    function: str
    change: str
    source: str  # of the whole module, mutated

    @property
    def key(self) -> str:
        """Names the mutant, also in a later run."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]


# Mutants of one module


def mutants(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module's source, without repetitions."""
    tree = ast.parse(source)
    found: dict[str, Mutant] = {}
    for place, function in _places(tree):
        for index, (change, _) in enumerate(_alternatives(_at(tree, place))):
            mutated = copy.deepcopy(tree)
            _put(mutated, place, _alternatives(_at(mutated, place))[index][1])
            text = ast.unparse(ast.fix_missing_locations(mutated))
            found.setdefault(text, Mutant(module, getattr(_at(tree, place), "lineno", 0), function, change, text))
    found.pop(ast.unparse(tree), None)
    return list(found.values())


Place = tuple[tuple[str, int | None], ...]  # fields and indices from the root


def _places(node: ast.AST, place: Place = (), function: str = "") -> Iterator[tuple[Place, str]]:
    """Every place that code is at, from the top; annotations and docstrings are no code."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".lstrip(".")
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not _is_docstring(child):
                here = (*place, (name, index))
                yield here, function
                yield from _places(child, here, function)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _at(tree: ast.AST, place: Place) -> Any:
    node: Any = tree
    for name, index in place:
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    return node


def _put(tree: ast.AST, place: Place, new: ast.AST) -> None:
    parent = _at(tree, place[:-1])
    name, index = place[-1]
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new


def _alternatives(node: Any) -> list[tuple[str, ast.AST]]:
    """What may stand in a node's place, each with words for a person."""
    if isinstance(node, ast.Compare):
        return list(_compared(node))
    if isinstance(node, ast.BinOp | ast.AugAssign):
        return [(f"{_text(node)}: {type(node.op).__name__} to {new.__name__}", _with(node, op=new())) for new in OPERATORS[type(node.op)]]
    if isinstance(node, ast.BoolOp):
        new = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return [(f"{_text(node)}: and/or swapped", _with(node, op=new))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        return [(f"{_text(node)}: without its sign or not", node.operand)]
    if isinstance(node, ast.If | ast.IfExp):
        return [(f"if {_text(node.test)}: negated", _with(node, test=ast.UnaryOp(ast.Not(), node.test)))]
    if isinstance(node, ast.Constant):
        return [(f"{_text(node)} to {value!r}", ast.Constant(value)) for value in _constants(node.value)]
    if isinstance(node, ast.Return) and node.value is not None and _text(node.value) != "None":
        return [(f"return {_text(node.value)}: returns None", ast.Return(ast.Constant(None)))]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [(f"{_text(node)}: left out", ast.Pass())]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        return [(f"{_text(node)}: left out", ast.Pass())]
    if isinstance(node, ast.Name) and node.id in NAMES:
        return [(f"{node.id} to {NAMES[node.id]}", _with(node, id=NAMES[node.id]))]
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        return [(f"{_text(node)} to {NAMES[node.attr]}", _with(node, attr=NAMES[node.attr]))]
    return []


def _compared(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for index, operator in enumerate(node.ops):
        for new in COMPARISONS[type(operator)]:
            ops = [*node.ops[:index], new(), *node.ops[index + 1 :]]
            yield f"{_text(node)}: {type(operator).__name__} to {new.__name__}", _with(node, ops=ops)


def _constants(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2, value / 2] if value else [1.0]
    return []


def _with(node: Any, **changed: Any) -> Any:
    return type(node)(**{**dict(ast.iter_fields(node)), **changed})


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 90 else f"{text[:87]}..."


# Judging one


class _Replacing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from the given code instead of its file."""

    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self._name else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)  # noqa: S102


_BROKEN = 70  # of a child that did not get as far as the tests


def judge(module: str, source: str, timeout_s: float) -> str:
    """``killed``, ``survived`` or ``timeout``: runs the module's tests against the source in a forked process."""
    child = os.fork()
    if child == 0:
        _run_tests(module, source)
    deadline = time.monotonic() + timeout_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code in (_BROKEN, 5):  # 5: pytest found no tests
                raise RuntimeError(f"the tests of {module} did not run: status {code}")
            return "survived" if code == 0 else "killed"
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.01)


def _run_tests(module: str, source: str) -> None:
    """In the child; never returns."""
    status = _BROKEN
    try:
        os.setpgid(0, 0)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(prefix="mutant-")
        sys.meta_path.insert(0, _Replacing(f"otpr_policy.{module}", compile(source, f"<mutant of {module}>", "exec")))
        import pytest

        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--rootdir={ROOT}"]
        status = int(pytest.main([*options, *(str(TESTS / name) for name in TARGETS[module])]))
    finally:
        os._exit(status)


# All of them


def _digest(module: str) -> str:
    """Of everything that a judgement of a module's mutant depends on besides the mutant itself."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    tests = [TESTS / name for name in TARGETS[module]]
    for path in sorted([*(path for path in PACKAGE.glob("*.py") if path.stem != module), *tests, *(ROOT / "tests").glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _earlier() -> dict[str, str]:
    return dict(json.loads(OUT.read_text(encoding="utf-8"))["judgements"]) if OUT.is_file() else {}


def _write(judgements: dict[str, str], everything: dict[str, Mutant]) -> dict[str, Any]:
    from otpr_policy.files import make_directory, write_text

    judged = [mutant for key, mutant in everything.items() if key in judgements]
    survivors = [mutant for key, mutant in everything.items() if judgements.get(key) == "survived"]
    result = {
        "mutants": len(judged),
        "unjudged": len(everything) - len(judged),
        "killed": len(judged) - len(survivors),
        "score": (len(judged) - len(survivors)) / max(1, len(judged)),
        "modules": {
            module: {"mutants": sum(m.module == module for m in judged), "survived": sum(m.module == module for m in survivors)}
            for module in TARGETS
        },
        "survivors": [{key: value for key, value in asdict(mutant).items() if key != "source"} for mutant in survivors],
        "python": platform.python_version(),
        "judgements": judgements,
    }
    make_directory(OUT.parent)
    write_text(OUT, json.dumps(result, indent=2) + "\n")
    return result


def main() -> int:
    """Judges every mutant; status 1 when fewer than the required share are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", type=float, default=0.95, help="least share of mutants killed, 0 to 1")
    parser.add_argument("--module", choices=TARGETS, action="append", help="only this module (may be given more than once)")
    parser.add_argument("--sample", type=int, default=0, help="judge only every so many-th mutant, for a quick look")
    arguments = parser.parse_args()
    from tqdm import tqdm

    for name in PRELOADED:
        __import__(name)
    modules = arguments.module or list(TARGETS)
    sources = {module: (PACKAGE / f"{module}.py").read_text(encoding="utf-8") for module in modules}
    limits_s = {}
    for module, source in sources.items():
        start = time.monotonic()
        if judge(module, ast.unparse(ast.parse(source)), 600.0) != "survived":
            print(f"error: the tests of {module} fail without any mutation; run pytest on {', '.join(TARGETS[module])}", file=sys.stderr)
            return 1
        limits_s[module] = 5 * (time.monotonic() - start) + 10
    chosen = [mutant for module, source in sources.items() for mutant in mutants(module, source)][:: arguments.sample or 1]
    digests = {module: _digest(module) for module in modules}
    everything = {f"{digests[mutant.module]}-{mutant.key}": mutant for mutant in chosen}
    judgements = _earlier()
    result = _write(judgements, everything)
    with tqdm(total=len(everything), unit="mutant", initial=result["mutants"]) as progress:
        for key, mutant in everything.items():
            if key in judgements:
                continue
            judgements[key] = judge(mutant.module, mutant.source, limits_s[mutant.module])
            result = _write(judgements, everything)
            progress.set_postfix_str(f"{result['mutants'] - result['killed']} survived")
            progress.update()
    for survivor in result["survivors"]:
        print(f"survived: {survivor['module']}.py:{survivor['line']} {survivor['function']}: {survivor['change']}")
    print(f"{result['killed']} of {result['mutants']} mutants killed ({100 * result['score']:.1f} %); written: {OUT.relative_to(ROOT)}")
    return 0 if result["score"] >= arguments.require else 1


if __name__ == "__main__":
    sys.exit(main())
