"""How the embedded weights are made: corpus, linear autoencoder, training of the U-Net and of the transformer.

No run-time package imports this one. Run it with `make weights`.
"""
