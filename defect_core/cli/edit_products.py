"""`remove-product` and `rename-product`: settings, dvc.yaml, dvc.lock, data and metrics change together or not."""

from collections.abc import Callable
from itertools import product as combinations
from pathlib import Path
from typing import Any

from defect_core.cli.transaction import all_or_nothing, edited_params, move_away, quoted
from defect_core.data.records import check_name
from defect_core.errors import InputError
from defect_core.graph.dvcfile import sync
from defect_core.graph.instances import AXES
from defect_core.graph.local import COSTS
from defect_core.graph.read_back import check_read_back
from defect_core.graph.table import STAGES
from defect_core.project.params import Params
from defect_core.project.paths import PARAMS_FILE, STATE_DIR, Project

LOCK_FILE = "dvc.lock"
BY_PRODUCT = ("sources", "overrides", "regenerations", "placement")
"""Sections of params.yaml whose keys are products."""


def remove_product(project: Project, name: str) -> list[str]:
    """Remove a product from params.yaml, dvc.yaml and dvc.lock, with its data and metrics; the source stays.

    Returns:
        The files and folders that were removed, relative to the project. DVC's cache still has what it tracked.

    Raises:
        InputError: the product is unknown, or lends a defect to another one; nothing has changed.
    """
    params = _check_known(project, name)
    borrowers = [entry.product for entry in params.zero_shot if entry.lender == name and entry.product != name]
    if borrowers:
        raise InputError(
            f"params.yaml: zero_shot: {', '.join(borrowers)} borrows a defect from {name!r}; remove that entry first"
        )

    def edit(content: Any) -> None:
        content["products"].remove(name)
        for section in BY_PRODUCT:
            if content.get(section) and name in content[section]:
                _remove_key(content, section, name)
        if content.get("zero_shot"):
            content["zero_shot"] = [entry for entry in content["zero_shot"] if entry["product"] != name]

    return _apply(project, name, edit, ())


def rename_product(project: Project, old: str, new: str) -> list[str]:
    """Rename a product in params.yaml, whose comments stay, and in dvc.yaml.

    Records, manifests and seeds contain the name of their product. So results under the old name cannot serve the new
    one: they are removed, and `defectory run` makes them again. DVC's cache and the history of git keep them.

    Returns:
        The files and folders that were removed, relative to the project.

    Raises:
        InputError: the product is unknown, or the new name is taken or not usable; nothing has changed.
    """
    params = _check_known(project, old)
    check_name(new, "product")
    for other in params.products:
        if other.lower() == new.lower() and other != old:
            raise InputError(f"product {new!r}: {other!r} is already in {PARAMS_FILE}; choose another name")
    if new == old:
        raise InputError(f"product {new!r}: is the name that it has; choose another name")

    def edit(content: Any) -> None:
        content["products"][list(content["products"]).index(old)] = quoted(new)
        for section in BY_PRODUCT:
            if content.get(section) and old in content[section]:
                _rename_key(content[section], old, quoted(new))
        for entry in content.get("zero_shot") or []:
            for key in ("product", "from"):
                if entry.get(key) == old:
                    entry[key] = quoted(new)

    return _apply(project, old, edit, (new,))


def product_paths(name: str) -> list[str]:
    """Return the files and folders that belong to one product, relative to the project, whether they exist or not."""
    paths = [f"data/source/{name}.json", f"{STATE_DIR}/sheets/{name}.png", f"{STATE_DIR}/sheets/{name}-preview.png"]
    for stage in STAGES:
        for template in (*stage.outputs, *stage.metrics):
            parts = template.split("/")
            level = next((index for index, part in enumerate(parts) if "{product}" in part), None)
            if level is not None:
                paths.append("/".join(parts[: level + 1]).replace("{product}", name))
    return sorted(set(paths))


def _check_known(project: Project, name: str) -> Params:
    params = project.params
    if name not in params.products:
        known = ", ".join(params.products) or "none yet"
        raise InputError(f"product {name!r} is not in params.yaml; expected one of {known}")
    return params


def _apply(project: Project, old: str, edit: Callable[[Any], None], added: tuple[str, ...]) -> list[str]:
    """Edit the settings, and remove everything that belongs to the old name."""
    addresses = _addresses(project.params, old)
    with all_or_nothing(project) as removed_files:
        removed = [path for path in product_paths(old) if move_away(project, path, removed_files)]
        for address in addresses:
            move_away(project, f"{STATE_DIR}/{COSTS}/{address}.json", removed_files)
        with edited_params(project) as content:
            edit(content)
        _remove_from_lock(project, addresses)
        changed = Project(project.root)
        sync(changed)
        check_read_back(changed, added)
    for path in removed:
        _stop_ignoring(project.path(path))
    return [path for path in removed if not path.startswith(STATE_DIR)]


def _addresses(params: Params, name: str) -> set[str]:
    """Return the addresses of all instances of a product, of stages that are switched off too."""
    values = {"product": (name,), "generator": params.generators, "arm": params.arms}
    return {
        f"{stage.name}@{'-'.join(cell)}"
        for stage in STAGES
        if "product" in stage.grid
        for cell in combinations(*(values[axis] for axis in AXES if axis in stage.grid))
    }


def _remove_from_lock(project: Project, addresses: set[str]) -> None:
    from ruamel.yaml import YAML

    path = project.path(LOCK_FILE)
    if not path.is_file():
        return
    yaml = YAML()
    yaml.width = 4096
    content = yaml.load(path.read_text(encoding="utf-8")) or {}
    known = addresses & set(content.get("stages") or {})
    for address in known:
        del content["stages"][address]
    if not content.get("stages"):
        path.unlink()
    elif known:
        with path.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)


def _remove_key(content: Any, section: str, name: str) -> None:
    """Remove an entry of a section; a section that becomes empty goes with the comments inside it."""
    if len(content[section]) > 1:
        content[section].pop(name)
    elif section == "sources":
        content[section] = {}
    else:
        content.pop(section)


def _rename_key(mapping: Any, old: str, new: str) -> None:
    """Rename a key of a mapping of ruamel at its place, with its comments."""
    position = list(mapping).index(old)
    comments = mapping.ca.items.pop(old, None)
    mapping.insert(position, new, mapping.pop(old))
    if comments is not None:
        mapping.ca.items[new] = comments


def _stop_ignoring(path: Path) -> None:
    """Remove the line that DVC wrote for an output into the .gitignore beside it."""
    ignore = path.parent / ".gitignore"
    if not ignore.is_file():
        return
    lines = ignore.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line != f"/{path.name}"]
    if not kept:
        ignore.unlink()
    elif kept != lines:
        ignore.write_text("\n".join(kept) + "\n", encoding="utf-8")
