"""The tiny pipelines by name.

family = FAMILIES["sdxl"]
pipe = family.build()                               # made once, with its stock scheduler
latents = family.call(pipe, steps=4, seed=0)        # with the pipeline's scheduler
latents, times = family.run(scheduler, steps=4)     # with another one for this call
"""

from tiny.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
