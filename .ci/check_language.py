"""Check code and documents for words that this project replaces by the terms of the field.

Each pattern names the term to use instead. `ALLOWED` lists the few places where a word has its ordinary meaning.
Exit status 1 if a word is found.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".html", ".toml"}
REPLACEMENTS = {
    r"draw|draws|drawn|drawing|drawings|drawer|drawers": "sample, generate, render; choose at random",
    r"(?<![.\w])walk|walks|walked|walking": "sampling loop, denoising trajectory",
    r"good images?|good ones?": "normal image",
    r"learned words?|its words|their words": "token, token embedding",
    r"told|hears|heard|speaks? of": "conditioned on",
    r"judges?|judged": "downstream model; compare",
    r"grains?|grained": "sensor noise; texture direction",
    r"lies|stands(?! for)|stood|laid": "is in, is stored",
    r"lay(?:s|ing)? down|lay_down": "create",
    r"at hand": "available, installed",
    r"examines?|aside|deal|dealt": "a verb that names the action",
    r"promises?|promised": "capabilities",
    r"(?<![-\w])board": "leaderboard",
    r"begun from|begins? from": "initialised from",
    r"kin|alike": "similarity, distance",
    r"so many|of before|of today|as it is now|of its own|of their own": "name the thing",
    r"falls? out|comes? out": "cancels; results in",
    r"mended|mends": "fixed, corrected",
}
# Ordinary uses, as a regular expression over the line; None: the whole file.
ALLOWED = {
    r".*\.py": r"ImageDraw|draw\.(?:rectangle|line|text|ellipse|polygon|point|arc)|data\.draw|draw\(st\.|derive_seed\(|"
    r"@st\.composite|os\.walk|ast\.walk|\.walk\(",
    r"tests/.*\.py": r"\bdraw[(,]",
    r"defect_core/adaptation/sensor_noise\.py": r"[Ff]ilm grain",
    r"defect_core/pretraining/tokenizer\.py": None,
    r"defect_core/pretraining/corpus/.*\.py": r'^    "\w+": \(_',  # names of products in captions
    r"docs/research/.*": None,
    r"docs/glossary\.md": None,
    r"\.ci/check_language\.py": None,
    r"LICENSE|CHANGELOG\.md": None,
}


def find_words(path: Path) -> list[str]:
    """Return one line per word found in a file."""
    name = path.relative_to(ROOT).as_posix()
    exceptions = [regex for pattern, regex in ALLOWED.items() if re.fullmatch(pattern, name)]
    if None in exceptions:
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if any(regex and re.search(regex, line) for regex in exceptions):
            continue
        for pattern, term in REPLACEMENTS.items():
            # Parts of snake_case names count as words.
            for match in re.finditer(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", line, re.IGNORECASE):
                found.append(f"{name}:{number}: {match[0]!r}; use: {term}")
    return found


def main() -> int:
    """Check all files that git tracks."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listing.splitlines() if Path(name).suffix in SUFFIXES]
    found = [line for path in paths if path.is_file() for line in find_words(path)]
    print("\n".join(found) or "language: no word of the list found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
