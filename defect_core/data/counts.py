"""What a product needs at least, and what can be done if it has less."""

from collections.abc import Mapping

ADVISED_NORMALS = 20
"""Normal images below which a product is reported as unusual: pairs would repeat a few backgrounds."""


def count_problems(normals: int, defects: Mapping[str, int], min_per_defect: int) -> list[tuple[str, str]]:
    """Return what is missing, each with what can be done.

    Args:
        normals: number of usable normal images.
        defects: number of usable images by label of the defect type.
        min_per_defect: `ingest.min_per_defect`.
    """
    problems = []
    if normals == 0:
        problems.append(
            (
                "no normal images found (good)",
                "every method generates defects on normal images, and the segmenter is tested on them; add at least 1, "
                f"better {ADVISED_NORMALS}; name their folder with --option good=FOLDER, or use --missing-masks normal "
                "if images without a mask are normal",
            )
        )
    for label, count in defects.items():
        if count < min_per_defect:
            problems.append((f"defect {label!r} has {count} usable example(s)", _cure(label, min_per_defect)))
    return problems


def _cure(label: str, minimum: int) -> str:
    return (
        f"expected at least {minimum} (ingest.min_per_defect), because some train and at least 1 tests; add examples, "
        f"set ingest.min_per_defect: 2 if there are 2, or leave {label!r} out with --option defects=[...]; with the "
        "generator defectdiffu, zero_shot generates it from examples of another product"
    )
