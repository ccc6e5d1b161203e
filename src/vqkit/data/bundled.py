"""Seven real photos that scikit-image and scikit-learn install with themselves."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vqkit.data.files import DataError

# Each is a path that begins with the package to import.
TRAINING = {
    "astronaut": "skimage/data/astronaut.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "hubble_deep_field": "skimage/data/hubble_deep_field.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}
HELD_OUT = {"chelsea": "skimage/data/chelsea.png"}


def photo_path(photo: str) -> Path:
    """The file of one photo inside an installed package, which is located but not imported.

    `import sklearn` alone takes 1.6 s, and `skimage.data` would look for a missing photo in the network.
    """
    module, _, inside = photo.partition("/")
    distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[module]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the bundled photos need {distribution}; run: pip install 'vqkit[train]'")
    path = Path(spec.submodule_search_locations[0], inside)
    if not path.is_file():
        raise DataError(
            f"{path}: the installed {distribution} lacks this photo; run: pip install --force-reinstall "
            f"{distribution}; or train on images of your own: vqkit train FOLDER"
        )
    return path
