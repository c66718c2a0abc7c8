"""Packages Parley; what it needs is read from requirements.txt, so that there is one list only."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGES = ["app", "services", "schemas", "database", "tools"]


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
    packages=find_packages(include=[f"{name}{rest}" for name in PACKAGES for rest in ("", ".*")]),
    package_data={
        "services": ["engine/**/*.cpp", "engine/**/*.h"],
        "app": ["static/**/*"],
        "database": ["migrations/**/*.py", "migrations/**/*.mako"],
    },
    install_requires=requirements("requirements.txt"),
    extras_require={
        "bench": requirements("requirements-bench.txt"),
        "dev": [*requirements("requirements-bench.txt"), *requirements("requirements-dev.txt")],
    },
    entry_points={"console_scripts": ["parley = tools.cli:main"]},
)
