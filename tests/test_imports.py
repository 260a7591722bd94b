"""Who may import whom, and what `import dmtl` costs: parsed and measured."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms from the ground up. An import goes down, or stays inside its own room.
RANKS = [
    {"dmtl", "dmtl.errors", "dmtl.text"},
    {"dmtl.registry", "dmtl.runtime", "dmtl.fields"},
    {"dmtl.ops"},
    # Kernels import the specifications that they implement. Only the registry loads kernels, by name.
    {"dmtl.kernels"},
    {"dmtl.kernels.cpu", "dmtl.kernels.cuda", "dmtl.kernels.triton"},
    {"dmtl.nn", "dmtl.diffusion", "dmtl.metrics", "dmtl.info"},
    {"dmtl.tasks"},
    {"dmtl.models", "dmtl.data"},
    {"dmtl.engine"},
    {"dmtl.predict"},
    {"dmtl.evaluation"},
    {"dmtl.train"},
    {"dmtl.report"},
    {"dmtl.app"},
    {"dmtl.cli"},
    {"dmtl.__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def room_of(module: str) -> str:
    """The longest known room that holds the module."""
    parts = module.split(".")
    for size in range(min(3, len(parts)), 0, -1):
        if (room := ".".join(parts[:size])) in RANK and (size > 1 or len(parts) == 1):
            return room
    raise AssertionError(f"{module} belongs to no room of tests/test_imports.py")


def sources() -> list[tuple[str, Path]]:
    """(module name, file) of every Python file of the package, device code included."""
    found = []
    for base, prefix in ((ROOT / "dmtl", "dmtl"), (ROOT / "kernels", "dmtl.kernels")):
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            name = ".".join([prefix, *parts]).removesuffix(".__init__")
            found.append((name, path))
    return found


MODULES = {name for name, _ in sources()}


def imports(name: str, path: Path) -> set[str]:
    """Modules of dmtl that a file imports, in functions and for types too; `from package import module` is
    resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return {module for module in found if module.split(".")[0] == "dmtl"}


@pytest.mark.parametrize(("name", "path"), [pytest.param(name, path, id=name) for name, path in sources()])
def test_imports_go_down(name, path):
    home = room_of(name)
    for module in imports(name, path):
        room = room_of(module)
        assert room == home or RANK[room] < RANK[home], f"{name} ({home}) must not import {module} ({room})"


def test_no_import_circles():
    """No module imports itself through others, not even inside a function or for its types."""
    left = {name: imports(name, path) & MODULES - {name} for name, path in sources()}
    while free := {name for name, needed in left.items() if not needed}:
        left = {name: needed - free for name, needed in left.items() if name not in free}
    while free := set(left) - set().union(*left.values()):  # these only lead into a circle
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, f"these modules import one another: {left}"


def decides_by_kind(node: ast.AST, words: set[str], classes: set[str]) -> bool:
    """Whether code looks at a task's kind, name or class to do one thing or another."""
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        constants = {inner.value for p in parts for inner in ast.walk(p) if isinstance(inner, ast.Constant)}
        return bool(words & constants) and any(
            getattr(part, "attr", "") in ("kind", "name") for part in parts
        )
    if isinstance(node, ast.Dict):
        return sum(isinstance(key, ast.Constant) and key.value in words for key in node.keys) > 1
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
        names = {getattr(inner, "id", getattr(inner, "attr", "")) for inner in ast.walk(node.args[1])}
        return bool(classes & names)
    return False


def test_only_tasks_decide_by_their_kind():
    """A new kind of task is one file in dmtl/tasks: other rooms call its methods (`dmtl.tasks.base.Task`)."""
    import dmtl.tasks as tasks

    kinds = (*tasks.KINDS.values(), *tasks.KNOWN.values())
    classes = {base.__name__ for kind in kinds for base in kind.__mro__} - {"Task", "object"}
    for name, path in sources():
        if room_of(name) == "dmtl.tasks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            words = set(tasks.KINDS) if isinstance(node, ast.Dict) else {*tasks.KINDS, *tasks.KNOWN}
            assert not decides_by_kind(node, words, classes), (
                f"{path.relative_to(ROOT)}:{node.lineno} decides by the kind of a task: "
                f"{ast.unparse(node)[:80]}; make it a method or an attribute of Task that its kinds override"
            )


@pytest.mark.parametrize(
    "code",
    [
        "task.kind == 'classes'",
        "task.kind in ('scalar', 'binary')",
        "task.name == 'edge'",
        "isinstance(task, (int, Scalar))",
        "{'classes': 1, 'binary': 2}[task.kind]",
    ],
)
def test_decisions_by_kind_are_recognised(code):
    words = {"classes", "binary", "scalar", "edge"}
    assert any(decides_by_kind(node, words, {"Scalar"}) for node in ast.walk(ast.parse(code)))


def test_only_the_registry_reaches_kernels():
    for name, path in sources():
        text = path.read_text()
        if not name.startswith("dmtl.kernels") and "dmtl.kernels" in text:
            assert name == "dmtl.ops.registry", f"{name} names dmtl.kernels"


def test_native_sources_include_what_they_may():
    """csrc/cpu and kernels/cuda see csrc/include alone; nothing but the bindings knows pybind11, nothing at
    all knows torch."""
    files = [
        path
        for base in ("csrc", "kernels")
        for path in (ROOT / base).rglob("*")
        if path.suffix in {".cpp", ".cu", ".cuh", ".h"}
    ]
    assert files
    for path in files:
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not any("torch" in line or "ATen" in line or "c10" in line for line in includes), path
        if path.parent.name != "bindings":
            assert not any("pybind11" in line for line in includes), path
            assert all(line.split('"')[1].startswith("dmtl/") for line in includes if '"' in line), path


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_import_is_lean_and_fast():
    """Torch alone beside the standard library, a fifth of its time, no device touched, no file written."""
    out = run_python("""
        import sys
        from time import process_time
        started = process_time()
        import torch
        theirs = process_time() - started
        written = []
        def watch(event, args):
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                written.append(args[0])
        sys.dont_write_bytecode = True
        sys.addaudithook(watch)
        before = set(sys.modules)
        started = process_time()
        import dmtl
        import dmtl.ops
        ours = process_time() - started
        new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
        fast = ours < theirs / 5
        print(new - {"dmtl"}, written, torch.cuda.is_initialized(), fast, "triton" in sys.modules)
    """)
    assert out.split() == ["set()", "[]", "False", "True", "False"]


def test_prediction_starts_without_a_compiler():
    """Importing torch's compiler takes as long as torch itself, and our encoders predict without it."""
    out = run_python("""
        import sys
        import dmtl.cli.predict
        import dmtl.predict.predictor
        from dmtl.engine.memory import encoder_numbers
        encoder_numbers("efficientnet_lite0", 64)
        encoder_numbers("resnet18", 64)
        heavy = {"torch._dynamo", "torch._inductor", "sympy", "triton", "scipy", "jinja2", "av", "onnx"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert out.split() == ["[]"]


def test_a_recording_needs_no_compiler():
    out = run_python("""
        import sys, torch
        from dmtl.engine.engine import Engine
        from dmtl.runtime import native
        from tests.models.cases import small_model
        engine = Engine(small_model())
        for _ in range(3):
            engine.maps(torch.randn(1, 3, 64, 64))
        print(len(engine._graphs) == 1 or bool(native.why_no_core()), "torch._dynamo" in sys.modules)
    """)
    assert out.split() == ["True", "False"]


def test_public_names_exist():
    """Every lazily exposed name can be imported, and an unknown one is an AttributeError."""
    out = run_python("""
        import dmtl
        assert "torch" not in __import__("sys").modules
        for name in dmtl.__all__:
            assert getattr(dmtl, name) is not None
        try:
            dmtl.nonsense
        except AttributeError as error:
            print(error)
    """)
    assert "module 'dmtl' has no attribute 'nonsense'" in out
