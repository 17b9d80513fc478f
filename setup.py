from setuptools import find_packages, setup

ROOTS = ("solvers", "adapters", "benchmarks")

setup(
    packages=["logsnr"]
    + [
        f"logsnr.{name}"
        for name in find_packages(include=[*ROOTS, *(f"{root}.*" for root in ROOTS)])
    ]
)
