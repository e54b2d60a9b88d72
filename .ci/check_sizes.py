"""Check that files have at most 400 lines, functions at most 60, and test names at most 79 characters."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TEST_NAME = 79


def find_problems(path: Path) -> list[str]:
    """Return one line per file, function or name that is too long."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    problems = []
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        problems.append(f"{name}: {lines} lines; expected at most {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            problems.append(f"{name}:{node.lineno}: {node.name} has {lines} lines; expected <= {MAX_FUNCTION_LINES}")
        if node.name.startswith("test_") and len(node.name) > MAX_TEST_NAME:
            problems.append(f"{name}:{node.lineno}: {node.name} is longer than {MAX_TEST_NAME} characters")
    return problems


def main() -> int:
    """Check all Python files that git tracks."""
    listing = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    problems = [line for name in listing.splitlines() if (ROOT / name).is_file() for line in find_problems(ROOT / name)]
    print("\n".join(problems) or "sizes: no file, function or test name is too long")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
