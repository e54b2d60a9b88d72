"""Seeds of samples and trainings, derived from what they belong to."""

import hashlib


def derive_seed(base_seed: int, product: str, generator: str, defect: str, index: int) -> int:
    """Derive a 63-bit seed from the identity of a sample.

    The seed depends on nothing else: not on batch size, shard, worker or order.

    Args:
        base_seed: `seed` of params.yaml.
        product: name of the product.
        generator: name of the generator or arm; "" if there is none.
        defect: defect type, or the purpose of the seed.
        index: number of the sample within its defect type.

    Returns:
        The first 8 bytes of a SHA-256 digest, shifted right by one bit: 0 to 2**63 - 1.
    """
    text = "\x1f".join([str(base_seed), product, generator, defect, str(index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def training_seed(base_seed: int, seed: int) -> int:
    """Return the seed of one training of a downstream model.

    Args:
        base_seed: `seed` of params.yaml.
        seed: one of the seeds of the model's section.
    """
    return base_seed * 1000 + seed
