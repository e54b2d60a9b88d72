"""SeaS: few-shot anomaly image generation with separation and sharing fine-tuning (Dai et al. 2025).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
