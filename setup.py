"""hvdkit's package metadata. Installing it never builds Horovod: `hvdkit horovod build` does."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

EXTRAS = {
    "bpe": ["tokenizers>=0.20"],
    "hf": ["transformers>=4.45", "tokenizers>=0.20"],
    "plot": ["matplotlib>=3.7"],
    "tensorboard": ["tensorboard>=2.12"],
    # What Horovod's build needs beside torch, a C++ compiler and an MPI.
    "build": ["setuptools<81", "wheel", "packaging", "cffi>=1.4", "cmake>=3.18"],
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.2",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.11",
        "types-PyYAML",
        "accelerate>=1.0",
    ],
}

setup(
    name="hvdkit",
    version="0.1.0",
    description="Train language models on many workers with Horovod and MPI",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["hvdkit", "hvdkit.*"]),
    package_data={"hvdkit": ["py.typed"]},
    install_requires=[
        "torch>=2.1",
        "numpy>=1.23",
        "mpi4py>=4.0",
        "safetensors>=0.4",
        "xxhash>=3.0",
        "jsonargparse>=4.35",
        "PyYAML>=6.0",
        "tqdm>=4.60",
        # Horovod's own, which its wheel is installed without.
        "cloudpickle",
        "psutil",
        "packaging",
        "cffi>=1.4",
        "setuptools<81",
    ],
    extras_require={
        **EXTRAS,
        "all": sorted({item for name, items in EXTRAS.items() if name != "dev" for item in items}),
    },
    entry_points={"console_scripts": ["hvdkit = hvdkit.cli:main"]},
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
    ],
)
