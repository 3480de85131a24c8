"""The house rules that code can check: imports point down, files and functions stay short, no flag soup."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lsdali").rglob("*.py"))

# A module may import from its own room and from lower levels only; rooms of one level are blind to each other.
LEVELS = [
    {"terminal"},
    {"errors"},
    {"config", "batch", "clock", "disk", "limits", "metric_names"},
    {"page", "event_file", "skips", "bar"},
    {"parts"},
    {"dist"},
    {"functional", "label_noise", "faults"},
    {"state"},
    {"data", "models", "optim", "metrics", "posthoc", "events", "meter"},
    {"methods", "loggers"},
    {"selection"},
    {"recipe"},
    {"trainer", "fit"},
    {"build", "resume", "answers"},
    {"face"},
    {
        "train",
        "report",
        "bench",
        "export",
        "scan",
        "pack",
        "evaluate",
        "predict",
        "cache",
        "list",
        "keys",
        "env",
        "sweep",
    },
    {"figure", "testing"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: depth for depth, rooms in enumerate(LEVELS) for room in rooms}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "lsdali").with_suffix("").parts
    return parts[0]


def imported_rooms(tree: ast.AST) -> set[str]:
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = [f"lsdali.{a.name}" for a in node.names] if node.module == "lsdali" else [node.module]
            names.update(whole)
    return {name.split(".")[1] for name in names if name.startswith("lsdali.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":  # for type checkers alone; tests/face looks at what `import lsdali` imports
        return
    for other in imported_rooms(ast.parse(path.read_text())) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{path.name} in {room} imports {other}, which does not lie below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is too long"
            defaults = [d for d in [*node.args.defaults, *node.args.kw_defaults] if isinstance(d, ast.Constant)]
            flags = [d for d in defaults if isinstance(d.value, bool)]
            assert len(flags) < 2, f"{path}: {node.name} has {len(flags)} boolean defaults"


def top_level_names(tree: ast.Module) -> set[str]:
    found = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    targets = [t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [n.target for n in tree.body if isinstance(n, ast.AnnAssign)]
    return found | {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def test_no_name_of_a_module_means_two_things() -> None:
    """Two modules may define a name only where it means the same: entry points, registries, types."""
    one_meaning = {"main", "start", "arguments", "__all__", "P", "T"}
    one_meaning |= {"METHODS", "NETWORKS", "DATA_SETS", "AUGMENTATIONS", "EFFECTS"}  # of each file
    one_meaning |= {"Floats", "Bounded", "READ"}
    one_meaning |= {"numbers", "size", "draw"}  # what every figure has
    one_meaning |= {"load", "loader", "predict", "train"}  # the Python face and the commands
    places: dict[str, list[str]] = {}
    for path in FILES:
        for name in top_level_names(ast.parse(path.read_text())) - one_meaning:
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    doubles = {name: where for name, where in places.items() if len(where) > 1}
    assert not doubles


NO_VERBS = re.compile(
    "A|After|All|An|As|At|Before|Beside|Both|But|By|Each|Every|Everything|Few|First|For|From|How|If|In|Inside|"
    "It|Last|Nothing|New|No|Of|On|Once|One|Other|Several|So|Some|Such|That|The|Then|There|These|They|This|"
    "Those|Three|Two|Up|What|When|Where|Whether|Which|Who|Why|With"
)


def function_docstrings(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Name and docstring of public functions; properties, and builders of networks, say what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (text := ast.get_docstring(node)):
            noun = {"property", "cached_property"} & {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if not noun and (node.returns is None or ast.unparse(node.returns) != "Network"):
                yield node.name, text


def begins_with_a_verb(text: str) -> bool:
    word = text.split()[0].rstrip(".,:;")
    plural = word.endswith("s") and word not in ("Pass", "Process", "Guess")
    return word.isalpha() and word.istitle() and not plural and not NO_VERBS.fullmatch(word)


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}: {text.splitlines()[0]}"
        for path in FILES
        for name, text in function_docstrings(ast.parse(path.read_text()))
        if not begins_with_a_verb(text)
    ]
    assert not found, "\n".join(found)


def test_dali_is_imported_in_few_modules_of_the_data_room_only() -> None:
    def imports(path: Path) -> set[str]:
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        return {n.module or "" if isinstance(n, ast.ImportFrom) else n.names[0].name for n in nodes}

    importers = {path for path in FILES if any(name.startswith("nvidia.dali") for name in imports(path))}
    pipeline = ROOT / "lsdali/data/pipeline"
    operators = {path for path in importers if path.parent == pipeline / "dali_ops"}
    assert importers - operators == {pipeline / "graph.py", pipeline / "decoder.py", ROOT / "lsdali/train.py"}


def test_the_trainer_names_no_method_model_or_data_set() -> None:
    from lsdali.data import DATASETS
    from lsdali.methods import METHODS
    from lsdali.models import MODELS

    words = {
        node.value
        for name in ("trainer.py", "build.py")
        for node in ast.walk(ast.parse((ROOT / "lsdali" / name).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not words & {*METHODS, *MODELS, *DATASETS}
