"""Packages Parley. Requirements are read from requirements.txt, so that there is one list only."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGES = ["app", "services", "schemas", "database", "tools"]
# programs that measure and break servers: for a checkout, which has their requirements
CHECKOUT_ONLY = ["tools.bench", "tools.faults", "tools.attacks"]


def requirements(name: str) -> list[str]:
    lines = [line.split(" #")[0].strip() for line in (HERE / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-"))]


setup(
    name="parley",
    version="0.1.0",
    description="An OpenAI-compatible chat service over any transformers model",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[f"{name}{rest}" for name in PACKAGES for rest in ("", ".*")], exclude=CHECKOUT_ONLY
    ),
    package_data={
        "services": ["engine/**/*.cpp", "engine/**/*.h"],
        "app": ["static/**/*"],
        "database": ["migrations/**/*.py", "migrations/**/*.mako"],
    },
    install_requires=requirements("requirements.txt"),
    extras_require={
        # replicas on a cluster: `parley deploy`; 467 MB, and without pins of its own for what requirements.txt pins
        "ray": ["ray[serve]==2.60.0"],
        "otel": requirements("requirements-otel.txt"),
        "s3": requirements("requirements-s3.txt"),
        "dev": [
            *requirements("requirements-otel.txt"),
            *requirements("requirements-s3.txt"),
            *requirements("requirements-bench.txt"),
            *requirements("requirements-dev.txt"),
        ],
    },
    entry_points={"console_scripts": ["parley = tools.cli:main"]},
)
