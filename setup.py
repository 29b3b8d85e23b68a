"""What setup.cfg cannot say: the wheel has the trained models, .keras files and their metadata, beside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tf_isvae*"]), "tf_isvae.exported_models"],
    package_dir={"tf_isvae.exported_models": "exported_models"},
    package_data={"tf_isvae": ["py.typed"], "tf_isvae.exported_models": ["*/*.keras", "*/metadata.json"]},
)
