"""How the program is built, in figures: what is long, what is untyped, who imports whom, what a change has to touch.

python -m benchmarks.structure                  # writes docs/benchmarks/structure.{md,json}; seconds, no training
python -m benchmarks.structure --root FOLDER    # the figures of another checkout's sources alone, printed

The five changes are entered by hand: each was made as a sketch that runs, and thrown away.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.pages import Verdict, markdown_table, report, verdict_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "structure.md"
COMMIT_BEFORE = "47cd5b6"
MOST_ANY, MOST_LINES, MOST_OF_A_FUNCTION = 80, 400, 50
# The folders that every other one may import; benchmarks, scripts and the package's face may import all.
BOTTOM = ("configs", "utils")
_TOP = ("benchmarks", "hybridmednet")


@dataclass(frozen=True)
class Longest:
    """lines: of the file or function `where`."""

    lines: int
    where: str


@dataclass(frozen=True)
class Structure:
    """Of all sources but tests.

    untyped: uses of the name Any. upward_imports: 'file: module' of each import from a folder that its own may not
    import (configs imports none, utils configs, the others those two), or of a script.
    """

    files: int
    lines: int
    untyped: int
    longest_file: Longest
    longest_function: Longest
    upward_imports: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """How many functions one optimizer step enters, in how many files."""

    functions: int
    files: int


@dataclass(frozen=True)
class Change:
    """What a change touched: existing files, new ones, lines added and removed in the existing ones; tests left out.

    before: files that the same change had to touch before, as they were counted then. ran: what the sketch did.
    in_the_way: what had to be changed although it should not care, and what became of it.
    """

    what: str
    before: str
    existing: tuple[str, ...]
    new: tuple[str, ...]
    added: int
    removed: int
    ran: str
    in_the_way: str


@dataclass(frozen=True)
class Before:
    """The figures of COMMIT_BEFORE that are compared: of the sources by `structure_of`, of the step by a profiler."""

    structure: Structure
    step: Step


BEFORE = Before(
    Structure(
        218,
        29_250,
        443,
        Longest(420, "data/phantom_findings.py"),
        Longest(45, "benchmarks/training_loops.py: lightning_loop"),
        (),
    ),
    Step(46, 12),
)
MEASURED = "2026-11-29"
CHANGES = (
    Change(
        "a backbone family (timm's RepViT, five sizes)",
        "2 files, 17 lines",
        ("models/backbones/timm_backbones.py", "models/backbones/timm_blocks.py"),
        (),
        4,
        1,
        "The tests of models that walk the registry pass for it, the slow ones too: pyramid, weights, checkpointing "
        "bit for bit.",
        "In the way were two lists in tests of families without stochastic depth; timm is asked now.",
    ),
    Change(
        "a table beside the image (two columns, one with gaps)",
        "24 files + 3 new",
        (
            "configs/default_config.py",
            "data/builder.py",
            "data/loading/loaders.py",
            "models/heads.py",
            "models/hybrid_med_net.py",
        ),
        ("data/table_columns.py", "models/table_encoder.py"),
        66,
        20,
        "train.py ran an epoch, probe and test split included; with gradient checkpointing the weights are equal "
        "bit for bit. Training, window, losses, workers, caches and device transforms were not touched.",
        "In the way were the probe, which built a model's Inputs itself, and Checkpointable.run_blocks, which knew the "
        "image alone: both mended. Still to do for a finished change: evaluate.py refuses such a checkpoint, as "
        "build_evaluation_loader makes its loader apart from build_loaders; predict.py, explain/__main__.py, "
        "inference/predictor.py, data/joint_inputs.py and deployment/ know images alone (6 files or more); "
        "docs/configuration.md is made anew.",
    ),
    Change(
        "two views a study, one missing in a third of them",
        "30 files",
        ("configs/default_config.py", "data/builder.py", "models/hybrid_med_net.py"),
        ("data/views.py", "models/view_aggregation.py"),
        22,
        7,
        "train.py ran an epoch on ragged batches; with gradient checkpointing the weights are equal bit for bit. An "
        "InputTransform around that of single images reads the views, so that loaders and workers stay as they are.",
        "In the way was Checkpointable.run_blocks, mended. Still in the way: DatasetIndex.read gives one image a row, "
        "so cache, profile and explanations see a study's first view; Study.file refuses several; evaluate.py scored "
        "the first view alone without a word, as build_evaluation_loader does not know the transform of build_loaders.",
    ),
    Change(
        "two processes under torchrun",
        "14 files + 2 new",
        ("train.py", "training/builder.py"),
        ("training/data_parallel.py",),
        10,
        3,
        "train.py, an epoch in float32 with a ViT, gloo: the training loss differs from one process's by 4e-8, the "
        "validation loss by nothing, weights by 6e-8.",
        "In the way was StepResult, whose losses were those of one process: Parallel.reduce_losses, mended. Still "
        "missing: batch normalisation's running statistics and dropout's stream have no place in Parallel (the sketch "
        "had neither); every process reads the whole window, as only the step takes its share; train.py makes the "
        "run's folder, status and report in every process (the sketch gave the others a temporary folder).",
    ),
    Change(
        "a service that starts, watches, pauses and continues runs",
        "7 files + a folder",
        (),
        ("service.py",),
        0,
        0,
        "A script of 56 lines: it starts train.py, reads RunFolder.read(path).status, writes the file 'control', finds "
        "the run paused (exit code 143), continues it by --resume and finds it finished, with the figures of all 84 "
        "steps in its folder.",
        "Nothing was in the way. A reader sees 'paused' until the continued process has written its status: it is to "
        "compare the pid.",
    ),
)


def sources_of(root: Path) -> list[Path]:
    """Scripts, and the files of folders that are packages, tests left out."""
    folders = (path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests")
    files = [*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(files)


def structure_of(root: Path) -> Structure:
    """Of the sources under a folder, by reading them; nothing is imported."""
    trees = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in sources_of(root)}
    parsed = {name: ast.parse(text, name) for name, text in trees.items()}
    lengths = {name: text.count("\n") for name, text in trees.items()}
    scripts = {name.removesuffix(".py") for name in parsed if "/" not in name}
    folders = {name.partition("/")[0] for name in parsed if "/" in name}
    return Structure(
        len(trees),
        sum(lengths.values()),
        sum(isinstance(node, ast.Name) and node.id == "Any" for tree in parsed.values() for node in ast.walk(tree)),
        max((Longest(lines, name) for name, lines in lengths.items()), key=lambda one: one.lines),
        max((one for name, tree in parsed.items() for one in _functions(name, tree)), key=lambda one: one.lines),
        tuple(found for name, tree in parsed.items() for found in _upward(name, tree, folders, scripts)),
    )


def _functions(name: str, tree: ast.Module) -> Iterator[Longest]:
    yield Longest(0, "")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield Longest(node.end_lineno - node.lineno + 1, f"{name}: {node.name}")


def _upward(name: str, tree: ast.Module, folders: set[str], scripts: set[str]) -> Iterator[str]:
    folder, inside, _ = name.partition("/")
    if not inside or folder in _TOP or name.endswith("/__main__.py"):
        return
    below = BOTTOM[: BOTTOM.index(folder)] if folder in BOTTOM else BOTTOM
    for module in _imported(tree):
        top = module.partition(".")[0]
        if top in scripts or (top in folders and top != folder and top not in below):
            yield f"{name}: {module}"


def _imported(tree: ast.Module) -> Iterator[str]:
    """Modules of all import statements, those inside functions too; relative ones stay within their folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def verdicts_of(now: Structure, step: Step) -> list[Verdict]:
    """What is wanted of the sources and of a step, and whether it is so."""
    file, function, upward = now.longest_file, now.longest_function, len(now.upward_imports)
    was = BEFORE.structure
    return [
        (
            f"uses of `Any`: under {MOST_ANY} (before: {was.untyped} by this count)",
            str(now.untyped),
            now.untyped < MOST_ANY,
        ),
        (
            f"longest file: at most {MOST_LINES} lines (before: {was.longest_file.lines}, {was.longest_file.where})",
            f"{file.lines}, {file.where}",
            file.lines <= MOST_LINES,
        ),
        (
            f"longest function: at most {MOST_OF_A_FUNCTION} lines (before: {was.longest_function.lines})",
            f"{function.lines}, {function.where}",
            function.lines <= MOST_OF_A_FUNCTION,
        ),
        (f"imports that run upwards: none (before: {len(was.upward_imports)})", str(upward), not upward),
        (
            f"functions that one optimizer step enters: fewer than before ({BEFORE.step.functions} in "
            f"{BEFORE.step.files} files)",
            f"{step.functions} in {step.files} files",
            step.functions < BEFORE.step.functions,
        ),
    ]


def page(now: Structure, step: Step) -> str:
    """The Markdown page."""
    changes = markdown_table(
        "change | before | files now | lines in them | new files",
        [
            (one.what, one.before, str(len(one.existing)), f"+{one.added} −{one.removed}", str(len(one.new)))
            for one in CHANGES
        ],
    )
    details = "\n".join(_detail(one) for one in CHANGES)
    return f"""# How the program is built

Made by `python -m benchmarks.structure`; before is commit `{COMMIT_BEFORE}`. {now.files} source files of
{now.lines:,} lines, tests left out.

{verdict_table(verdicts_of(now, step))}

`Any` is counted as a name in the syntax tree. An import runs upwards where a folder imports one that it may not:
configs imports none, utils imports configs, the others import those two. A step is entered by a profiler:
`python -m benchmarks.step_functions` names its functions.

## Five changes

Each was really made, as a small sketch that runs, on {MEASURED}, and thrown away; entered by hand. Tests are not
counted. "Before" is what was counted before this work, for the whole change. The sketches of a table and of views go as
far as `train.py` with its final report: the list below says what a finished change needs beyond, so the two columns
are not of the same thing. What was mended on the way is not counted either; with it, the files were 4 (two of them
tests), 7, 4, 4 and 0.

{changes}

{details}
"""


def _detail(one: Change) -> str:
    files = ", ".join(f"`{name}`" for name in one.existing) or "none"
    new = ", ".join(f"`{name}`" for name in one.new) or "none"
    return f"- **{one.what}.** {one.ran} Touched: {files}; new: {new}. {one.in_the_way}"


def main(arguments: list[str] | None = None) -> int:
    """Print the page and write it; 1 where something is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="print the figures of the sources under this folder, nothing else")
    parser.add_argument("--no-write", action="store_true", help="print the page only")
    options = parser.parse_args(arguments)
    if options.root is not None:
        print(structure_of(options.root))
        return 0
    from benchmarks.step_functions import one_step

    found = one_step()
    now, step = structure_of(ROOT), Step(sum(map(len, found.values())), len(found))
    figures = {"now": asdict(now), "step": asdict(step), "before": asdict(BEFORE), "changes": [*map(asdict, CHANGES)]}
    return report(None if options.no_write else PAGE, page(now, step), figures, verdicts_of(now, step))


if __name__ == "__main__":
    sys.exit(main())
