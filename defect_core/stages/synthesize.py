"""synthesize: generates image-mask pairs with their manifest into `data/synthetic/<product>/<generator>`."""

from defect_core.project.paths import Project, synthetic_folder
from defect_core.project.synthesis import load_project_generator, load_synthesis_job
from defect_core.synthesis.batches import synthesize


def run(project: Project, product: str, generator: str) -> None:
    """Run the stage for one product and generator."""
    job = load_synthesis_job(project, product, generator)
    trained = load_project_generator(project, product, generator)
    with project.building(synthetic_folder(product, generator), job.key) as work:
        synthesize(trained, job.plan, job.examples, work)
