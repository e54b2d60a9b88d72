"""From a trained generator to a synthetic set: requests, batches, the filter, the manifest, normal images."""
