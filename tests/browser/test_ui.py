"""The UI in a real browser: the graph, a materialised partition, a leak, the report.

The tests need Debian's `chromium` and the package `playwright`. Without them they are skipped, or fail if
DEFECTORY_BROWSER=required. Screenshots are written to the folder DEFECTORY_SCREENSHOTS.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from defect_core.cli.scaffold import init_project, request_regeneration
from defect_core.data.records import record_rows
from defect_core.graph.local import child_environment
from defect_core.project.paths import Project

PARAMS = """\
seed: 0
products: [weave]
sources:
  weave: {layout: demo}
generators: [crop-paste]
arms: [real_only, crop-paste]
split: {policy: first_third, max_train: 2}
finetune: {crop-paste: {}}
synthesize: {per_defect: 8}
score: {image_size: 64}
segment: {seeds: [0], image_size: 64, steps: 10}
"""
CHROMIUM = shutil.which("chromium")
WAIT_S = 300  # An upper bound for a loaded machine; on an idle one all tests take two minutes.

pytestmark = pytest.mark.browser


def _missing_program() -> str:
    if CHROMIUM is None:
        return "chromium is not installed (Debian: apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    return ""


@pytest.fixture(scope="module", autouse=True)
def browser_programs():
    if reason := _missing_program():
        if os.environ.get("DEFECTORY_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def factory(browser_programs, tmp_path_factory):
    """A small project that `defectory run` brought up to date while its UI was running: (project, URL)."""
    project = init_project(tmp_path_factory.mktemp("browser") / "factory")
    project.path("params.yaml").write_text(PARAMS)
    project = Project(project.root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = child_environment(project)
    server = subprocess.Popen(
        [sys.executable, "-m", "pipelines.dev", "--port", str(port)],
        cwd=project.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        subprocess.run(
            [sys.executable, "-m", "defect_core.cli.app", "run"],
            cwd=project.root, env=environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: _answers(url))
        yield project, url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


@pytest.fixture(scope="module")
def page(factory):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_S * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 850})
        page.set_default_timeout(WAIT_S * 1000)
        yield page
        browser.close()


def _answers(url):
    try:
        return urllib.request.urlopen(f"{url}/server_info", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def _wait(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.5)


def _take_screenshot(page, name):
    folder = os.environ.get("DEFECTORY_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1500)  # Wait for the end of animations.
        page.screenshot(path=Path(folder) / f"{name}.png")


def _materialise(page, url, asset, partition):
    """Materialise one partition through the dialog; return "Success" or "Failure"."""
    page.goto(f"{url}/assets/{asset}?view=partitions&partition={partition}")
    page.get_by_role("button", name="Materialize…").click()
    with page.expect_response(lambda answer: "mutation Launch" in (answer.request.post_data or "")) as answer:
        page.get_by_role("button", name="Launch 1 run").click()
    (run_id,) = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.value.text()))
    page.goto(f"{url}/runs/{run_id}")
    status = page.get_by_text("Success", exact=True).or_(page.get_by_text("Failure", exact=True)).first
    status.wait_for()
    return status.inner_text()


def test_the_graph_shows_what_dvc_ran(factory, page):
    from playwright.sync_api import expect

    _, url = factory
    page.goto(f"{url}/asset-groups")
    for group in ("real_data", "generators", "synthetic", "evaluation"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()
    page.goto(f"{url}/assets/synthesize?view=lineage")
    for name in ("ingest", "split", "finetune", "synthesize", "score", "segment", "leaderboard"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    _take_screenshot(page, "graph")
    # `defectory run` does not call Dagster; the sensor `report_dvc_runs` reported it.
    page.goto(f"{url}/assets/synthesize?view=partitions&partition=crop-paste%7Cweave")
    expect(page.get_by_text("Materialized (1)")).to_be_visible()


def test_a_materialised_partition_shows_its_contact_sheet(factory, page):
    from playwright.sync_api import expect

    project, url = factory
    before = project.path("data/synthetic/weave/crop-paste/manifest.parquet").read_bytes()
    request_regeneration(project, ["weave"], ["crop-paste"])
    assert _materialise(page, url, "synthesize", "crop-paste%7Cweave") == "Success"
    assert project.path("data/synthetic/weave/crop-paste/manifest.parquet").read_bytes() != before
    page.goto(f"{url}/assets/synthesize?view=partitions&partition=crop-paste%7Cweave")
    page.locator("tr", has_text="contact_sheet").get_by_text("Show Markdown").first.click()
    sheet = page.locator("img[alt^='synthetic images']").first
    expect(sheet).to_be_visible()
    assert sheet.evaluate("image => image.complete && image.naturalWidth") > 500
    _take_screenshot(page, "synthesize")


def test_a_leak_fails_the_check(factory, page):
    from playwright.sync_api import expect

    project, url = factory
    records = record_rows(project.path("data/split/weave.parquet"))
    images = {split: next(r.image for r in records if r.split == split and r.mask) for split in ("train", "test")}
    raw = project.path("data/raw/weave")
    content = (raw / images["train"]).read_bytes()
    shutil.copyfile(raw / images["test"], raw / images["train"])
    try:
        assert _materialise(page, url, "split", "weave") == "Failure"
        page.goto(f"{url}/assets/split?view=checks")
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
        expect(page.get_by_text(f"{images['train']} (train) = {images['test']} (test)").first).to_be_visible()
        _take_screenshot(page, "leak")
    finally:
        (raw / images["train"]).write_bytes(content)


def test_the_report_shows_its_pictures(factory, page):
    from playwright.sync_api import expect

    project, _ = factory
    page.goto(project.path("report/index.html").as_uri())
    expect(page.get_by_role("heading", name="weave")).to_be_visible()
    assert page.locator("table").first.locator("tbody tr").count() == 2
    for image in page.locator("figure img").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    page.evaluate("window.scrollTo(0, 0)")
    _take_screenshot(page, "report")
