"""Run the mutations: each in a new process, forked from one that has imported torch and diffusers."""

import contextlib
import importlib
import io
import os
import pkgutil
import re
import sys
import tempfile
import traceback
from pathlib import Path

from benchmarks import mutations
from benchmarks.mutations.mutation import ROOT, Mutation, apply, link_tree, revert

TABLE = ROOT / "docs" / "research" / "mutations.md"
HEADER = """# Mutations

Each row is a deliberate fault in a component of a method, and the test that fails because of it. The tests pass without
the fault. `python -m benchmarks.mutations` writes the table: it applies each fault to a copy of the source tree and
runs the test there. A slow test does the same.
"""
_IGNORED = "ignore::pytest.PytestAssertRewriteWarning"  # plugins that are imported before the fork
COLUMNS = "| # | method | component | fault | caught by |\n|---|---|---|---|---|"


def main(arguments: list[str]) -> int:
    """Run the selected mutations and print what each test did. Return the number of mutations that were not caught."""
    selected = [(m, each) for m, each in _all_mutations() if _matches(m, each, arguments)]
    if "--list" in arguments:
        print("\n".join(f"{method}: {each.component}: {each.fault}" for method, each in selected))
        return 0
    if "--table" in arguments:
        TABLE.write_text(render_table(selected), encoding="utf-8")
        return 0
    if "--check" in arguments:
        problems = [problem for _, each in selected if (problem := _problem(each))]
        is_current = not TABLE.is_file() or TABLE.read_text(encoding="utf-8") == render_table(selected)
        print("\n".join(problems) or ("" if is_current else f"{TABLE.name} is old; run python -m benchmarks.mutations"))
        return len(problems) or int(not is_current)
    faulty = [problem for _, each in selected if (problem := _problem(each))]
    if faulty:
        print("\n".join(faulty))
        return len(faulty)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        link_tree(target)
        _preload()
        tests = sorted({each.test for _, each in selected})
        status, output = _run_tests(target, tests)
        if status != 0:
            print(f"the tests do not pass without a fault (exit status {status}):\n{output[-3000:]}")
            return len(selected)
        missed = 0
        for method, each in selected:
            apply(each, target)
            status, output = _run_tests(target, [each.test])
            revert(each, target)
            caught = status == 1 and bool(re.search(r"^(FAILED|ERROR) ", output, re.MULTILINE))
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {method}: {each.component}: {each.fault}", flush=True)
            if not caught:
                print(output[-1500:], flush=True)
    if not missed and not arguments:
        TABLE.write_text(render_table(selected), encoding="utf-8")
    return missed


def render_table(rows: list[tuple[str, Mutation]]) -> str:
    """Return docs/research/mutations.md."""
    lines = [
        f"| {number} | {method} | {each.component} | {each.fault} | `{each.test.removeprefix('tests/')}` |"
        for number, (method, each) in enumerate(rows, 1)
    ]
    return f"{HEADER}\n{len(rows)} of {len(rows)} are caught.\n\n{COLUMNS}\n" + "\n".join(lines) + "\n"


def _all_mutations() -> list[tuple[str, Mutation]]:
    found = []
    for info in pkgutil.iter_modules(mutations.__path__):
        module = importlib.import_module(f"benchmarks.mutations.{info.name}") if info.name != "__main__" else None
        for each in getattr(module, "MUTATIONS", ()):
            found.append((info.name.replace("_", "-"), each))
    return found


def _matches(method: str, mutation: Mutation, arguments: list[str]) -> bool:
    words = [word for word in arguments if not word.startswith("--")]
    return not words or any(word in f"{method}: {mutation.component}: {mutation.fault}" for word in words)


def _problem(mutation: Mutation) -> str:
    try:
        mutation.text()
    except (ValueError, SyntaxError) as error:
        return f"{mutation.component}: {mutation.fault}: {error}"
    return ""


def _preload() -> None:
    for name in ("torch", "diffusers", "transformers", "torchvision", "pandas", "scipy.ndimage", "pytest"):
        importlib.import_module(name)
    for name in (
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.unets.unet_2d_condition",
        "transformers.models.clip.modeling_clip",
        "torchvision.models",
    ):
        importlib.import_module(name)


def _run_tests(target: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests in a forked process whose packages are those of the folder; return exit status and output."""
    log = target / "output.txt"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _run_in_this_process(target, tests, log)
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(code), log.read_text(encoding="utf-8")


def _run_in_this_process(target: Path, tests: list[str], log: Path) -> int:
    import pytest
    import torch

    torch.set_num_threads(1)
    os.chdir(target)
    sys.path[:] = [str(target), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "defect_core", "benchmarks")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    output = io.StringIO()
    options = [
        "-q",
        "-x",
        "-rfE",
        "--no-header",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-W",
        _IGNORED,
        "-m",
        "",
        f"--rootdir={target}",
    ]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([*options, *tests])
    log.write_text(output.getvalue(), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
