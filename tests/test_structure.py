"""The design, read from the code: imports go down, each module is tested, nothing unpickles."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

FLOORS = (
    (
        "files",
        "notebook",
        "environment",
        "compiled",
        "counted",
        "workers",
        "interactions",
        "deltas",
        "losses",
        "metrics",
        "optim",
    ),
    (
        "tables",
        "tower",
        "scoring",
        "base",
        "batches",
        "negatives",
        "splits",
        "popularity",
        "recency",
    ),
    (
        "configs",
        "adapters",
        "stacks",
        "bank",
        "ladder",
        "modules",
        "arithmetic",
        "peft",
        "discovery",
    ),
    (
        "factorisation",
        "training",
        "early_stopping",
        "checkpoints",
        "ranking",
        "store",
        "interchange",
    ),
    (
        "evaluation",
        "comparison",
        "gate",
        "distributed",
        "truncation",
        "stability",
        "shrinkage",
        "hierarchy",
        "learning_curves",
        "drift",
    ),
    ("report",),
    ("pipelines", "datasets"),
)
"""From the lowest to the highest: a module imports from its own floor and from those below."""

TESTED_IN = {
    "reclora.arithmetic.averaging": "test_arithmetic",
    "reclora.arithmetic.compression": "test_arithmetic",
    "reclora.arithmetic.parts": "test_arithmetic",
    "reclora.datasets.planted_truth": "test_planted",
    "reclora.bank.assembly": "test_bank",
    "reclora.bank.stored": "test_bank",
    "reclora.deltas.blocks": "test_deltas",
    "reclora.deltas.dropout": "test_deltas",
    "reclora.deltas.per_row": "test_deltas",
    "reclora.deltas.touched": "test_deltas",
    "reclora.deltas.weights": "test_deltas",
    "reclora.deltas.whole_table": "test_deltas",
    "reclora.distributed.division": "test_distributed",
    "reclora.distributed.parts": "test_distributed",
    "reclora.distributed.ranking": "test_distributed",
    "reclora.distributed.recommending": "test_distributed",
    "reclora.distributed.rounds": "test_distributed",
    "reclora.distributed.saved": "test_distributed",
    "reclora.distributed.shards": "test_distributed",
    "reclora.distributed.training": "test_distributed",
    "reclora.comparison.means": "test_comparison",
    "reclora.comparison.pairs": "test_comparison",
    "reclora.comparison.resampling": "test_comparison",
    "reclora.comparison.values": "test_comparison",
    "reclora.comparison.verdicts": "test_comparison",
    "reclora.evaluation.config": "test_evaluation",
    "reclora.evaluation.held_out": "test_evaluation",
    "reclora.evaluation.judge": "test_evaluation",
    "reclora.evaluation.lists": "test_evaluation",
    "reclora.evaluation.plain": "test_foreign",
    "reclora.evaluation.pieces": "test_pieces",
    "reclora.evaluation.results": "test_evaluation",
    "reclora.factorisation.config": "test_factorisation",
    "reclora.factorisation.course": "test_factorisation",
    "reclora.factorisation.descent": "test_factorisation",
    "reclora.factorisation.directions": "test_factorisation",
    "reclora.factorisation.factorise": "test_factorisation",
    "reclora.factorisation.ials": "test_factorisation",
    "reclora.factorisation.negatives": "test_factorisation",
    "reclora.factorisation.objective": "test_factorisation",
    "reclora.factorisation.positives": "test_factorisation",
    "reclora.factorisation.summaries": "test_factorisation",
    "reclora.interactions.stored": "test_log",
    "reclora.interactions.summary": "test_layout",
    "reclora.interactions.workplace": "test_layout",
    "reclora.metrics.conventions": "test_metrics",
    "reclora.metrics.labels": "test_metrics",
    "reclora.metrics.lists": "test_metrics",
    "reclora.metrics.relevance": "test_metrics",
    "reclora.modules.attention": "test_modules",
    "reclora.modules.bags": "test_modules",
    "reclora.modules.embeddings": "test_modules",
    "reclora.modules.frozen": "test_model",
    "reclora.modules.layers": "test_modules",
    "reclora.modules.mixed": "test_model",
    "reclora.modules.model": "test_model",
    "reclora.modules.numbers": "test_model",
    "reclora.modules.rows": "test_model",
    "reclora.modules.sites": "test_modules",
    "reclora.modules.targets": "test_model",
    "reclora.modules.torchrec": "test_modules",
    "reclora.peft.counterparts": "test_peft",
    "reclora.peft.products": "test_peft",
    "reclora.peft.reading": "test_peft",
    "reclora.peft.settings": "test_peft",
    "reclora.peft.writing": "test_peft",
    "reclora.pipelines.assessment": "test_evaluate",
    "reclora.pipelines.bases_settings": "test_bases",
    "reclora.pipelines.evaluate_cli": "test_cli",
    "reclora.pipelines.evaluate_lists": "test_evaluate",
    "reclora.pipelines.evaluated": "test_evaluate",
    "reclora.pipelines.sections": "test_evaluate",
    "reclora.pipelines.inputs": "test_retrain",
    "reclora.pipelines.learning": "test_retrain",
    "reclora.pipelines.plan": "test_nightly",
    "reclora.pipelines.stability": "test_stability_cli",
    "reclora.pipelines.under_seeds": "test_stability_cli",
    "reclora.pipelines.live": "test_evaluate",
    "reclora.pipelines.options": "test_cli",
    "reclora.pipelines.yardstick": "test_evaluate",
    "reclora.pipelines.gating": "test_gate",
    "reclora.pipelines.space": "test_recommend",
    "reclora.pipelines.recommend_cli": "test_recommend",
    "reclora.pipelines.served": "test_recommend",
    "reclora.pipelines.wanted": "test_recommend",
    "reclora.pipelines.candidate_items": "test_recommend",
    "reclora.store.canaries": "test_releases",
    "reclora.pipelines.workshop": "test_nightly",
    "reclora.pipelines.alone": "test_nightly",
    "reclora.ranking.catalogue": "test_ranking",
    "reclora.ranking.parts": "test_recommend",
    "reclora.ranking.selection": "test_ranking",
    "reclora.ranking.two_stages": "test_ranking",
    "reclora.ranking.user_items": "test_ranking",
    "reclora.report.contents": "test_report",
    "reclora.report.figures": "test_report",
    "reclora.report.markdown": "test_report",
    "reclora.report.page": "test_report",
    "reclora.report.sheets": "test_report",
    "reclora.report.text": "test_report",
    "reclora.splits.cutting": "test_splits",
    "reclora.splits.given": "test_splits",
    "reclora.splits.leakage": "test_splits",
    "reclora.splits.windows": "test_splits",
    "reclora.store.changes": "test_changes",
    "reclora.store.committing": "test_changes",
    "reclora.store.decisions": "test_changes",
    "reclora.store.folders": "test_collecting",
    "reclora.store.layout": "test_packs",
    "reclora.store.lineage": "test_collecting",
    "reclora.store.loading": "test_store",
    "reclora.store.maps": "test_releases",
    "reclora.store.placements": "test_releases",
    "reclora.store.publishing": "test_store",
    "reclora.store.reader": "test_changes",
    "reclora.store.reading": "test_store",
    "reclora.store.retired": "test_collecting",
}
"""Parts of a whole that are tested with it."""

OF_NO_MODULE = {
    "test_benchmarks",
    "test_docs",
    "test_faults_files",
    "test_faults_input",
    "test_faults_segments",
    "test_faults_settings",
    "test_faults_store",
    "test_nightly",
    "test_schedules",
    "test_packaging",
    "test_parents",
    "test_peft_parity",
    "test_public_models",
    "test_readme",
    "test_report_browser",
    "test_structure",
}
UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    folders = {
        "reclora": ROOT / "reclora",
        "reclora.pipelines": ROOT / "pipelines",
        "reclora.datasets": ROOT / "datasets",
    }
    found = {}
    for package, folder in folders.items():
        # Examples for schedulers are text to copy, no modules.
        for path in sorted({*folder.rglob("*.py")} - {*folder.glob("schedules/*")}):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, module: str) -> Iterator[str]:
    """The dotted names that a file imports, also those inside functions; `from a import b` gives
    a.b.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def own(names: Iterator[str]) -> set[str]:
    """Those of our modules that the names are, or are in."""
    found = {name if name in modules() else name.rpartition(".")[0] for name in names}
    return found & modules().keys()


def floor_of(module: str) -> int:
    (floor,) = (n for n, names in enumerate(FLOORS) if module.split(".")[1] in names)
    return floor


def below_the_top() -> list[str]:
    return [name for name in modules() if name != "reclora"]


def test_imports_are_seen_in_all_their_forms() -> None:
    seen = {name: own(imported(path, name)) for name, path in modules().items()}
    assert {"reclora.bank", "reclora.pipelines.run", "reclora.store"} <= seen[
        "reclora.pipelines.retrain"
    ]
    assert "reclora.pipelines.summary" in seen["reclora.pipelines.cli"], "inside a function"
    assert {"reclora.report.page", "reclora.report.contents"} <= seen["reclora.report"]


def test_every_module_stands_on_one_floor() -> None:
    placed = [name for floor in FLOORS for name in floor]
    assert len(set(placed)) == len(placed)
    assert {name.split(".")[1] for name in below_the_top()} == set(placed)


@pytest.mark.parametrize("module", below_the_top())
def test_imports_go_down_only(module: str) -> None:
    up = [
        other
        for other in own(imported(modules()[module], module))
        if other == "reclora" or floor_of(other) > floor_of(module)
    ]
    assert not up, f"{module} imports {up}, which stand above it"


def test_imports_make_no_circle() -> None:
    graph = {name: own(imported(path, name)) - {name} for name, path in modules().items()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_report_knows_nothing_but_itself_and_files() -> None:
    for module, path in modules().items():
        if module.split(".")[1:2] == ["report"]:
            known = ("reclora.report", "reclora.files", "reclora.notebook")
            assert all(name.startswith(known) for name in own(imported(path, module)))


@pytest.mark.parametrize("module", modules())
def test_what_may_not_be_imported(module: str) -> None:
    path = modules()[module]
    roots = {name.split(".")[0] for name in imported(path, module)}
    assert not roots & UNPICKLING
    # It takes seconds: only where a model has its modules, and in the check-up's process.
    if module not in (
        "reclora.modules.torchrec",
        "reclora.distributed.placement",
        "reclora.distributed.shards",
        "reclora.pipelines.doctor",
    ):
        assert not roots & {"torchrec", "fbgemm_gpu"}
    # torch.load unpickles, too.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")


@pytest.mark.parametrize("module", modules())
def test_every_module_is_tested(module: str) -> None:
    """By the test file of its name, which imports it; a package that only exports needs none."""
    path = modules()[module]
    if path.name == "__init__.py" and not defines(path):
        return
    test = TESTS / f"{TESTED_IN.get(module, 'test_' + module.rpartition('.')[2])}.py"
    assert test.is_file(), f"{module} has no {test.name}"
    names = {*imported(test, "tests"), *mentioned(test)}
    # The parts of a library package may be tested through what the package exports.
    package = module.rpartition(".")[0]
    ways = [module] if package in ("reclora", "reclora.pipelines") else [module, package]
    assert any(f"{name}.".startswith(f"{way}.") for name in names for way in ways), (
        f"{test.name} has no {module}"
    )


def defines(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)


def mentioned(test: Path) -> set[str]:
    """What a test runs instead of importing it: the installed command, and its `demo`."""
    commands = {"test_cli": ("cli", "evaluate_cli", "options"), "test_demo": ("demo",)}
    return {f"reclora.pipelines.{name}" for name in commands.get(test.stem, ())}


def test_every_test_file_has_its_module() -> None:
    stems = {path.stem for path in TESTS.glob("test_*.py")} - OF_NO_MODULE
    named = {f"test_{name.rpartition('.')[2]}" for name in modules()}
    assert stems <= named, f"no module belongs to {sorted(stems - named)}"
    assert set(TESTED_IN) <= modules().keys()


def compiled_in(path: Path) -> set[str]:
    """The compiled functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "compiled" for d in node.decorator_list)
    }


def test_compiled_loops_call_none_of_another_file() -> None:
    """Their kept machine code would not notice that the other one had changed."""
    loops = {name: compiled_in(path) for name, path in modules().items()}
    assert sum(bool(names) for names in loops.values()) >= 3
    for module, path in modules().items():
        if loops[module]:
            for origin in imported(path, module):
                other, _, name = origin.rpartition(".")
                assert name not in loops.get(other, ()), f"{module} calls {origin}"
