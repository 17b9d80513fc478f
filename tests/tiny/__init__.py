"""Real diffusers pipelines, tiny: from configs, with seeded random weights, in milliseconds."""

# Each module registers its families, and this is their order.
from . import discrete, edm, flow, stable_diffusion, unconditional

__all__ = ["discrete", "edm", "flow", "stable_diffusion", "unconditional"]
