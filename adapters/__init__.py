"""The solvers inside other libraries: a drop-in scheduler for diffusers pipelines."""
